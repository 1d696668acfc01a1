package domain

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NewItem is the input of CreateItem.
type NewItem struct {
	SKU, Name string
	Stock     int64
	Strategy  string  // empty: the inventory's
	Fencing   Fencing // empty: the configured default
}

// CreateItem puts an item on sale.
func (s *Service) CreateItem(ctx context.Context, in NewItem, once *Once) (ItemView, error) {
	if err := CheckSKU("sku", in.SKU); err != nil {
		return ItemView{}, err
	}
	if err := checkText("name", in.Name, 1, maxName); err != nil {
		return ItemView{}, err
	}
	if in.Stock < 0 || in.Stock > MaxStock {
		return ItemView{}, Invalid("stock", "must be between 0 and %d", MaxStock)
	}
	lock, err := s.lockSpec(ctx, KindItem, in.Strategy, in.Fencing)
	if err != nil {
		return ItemView{}, err
	}
	return s.Store.CreateItem(ctx, Item{SKU: in.SKU, Name: in.Name, OnHand: in.Stock}, lock, once)
}

func (s *Service) lockSpec(ctx context.Context, kind Kind, strategy string, fencing Fencing) (LockSpec, error) {
	fencing, err := s.fencing(fencing)
	if err != nil {
		return LockSpec{}, err
	}
	return s.Guard.Spec(ctx, kind, strategy, fencing)
}

// Items lists a page of items by SKU, and returns the cursor of the next page.
func (s *Service) Items(ctx context.Context, p Page) (items []ItemView, next string, err error) {
	return list(p, func(v ItemView) Key { return ItemKey(v.SKU) }, func(after Key, limit int64) ([]ItemView, error) {
		return s.Store.Items(ctx, after, limit)
	})
}

// Item finds one item.
func (s *Service) Item(ctx context.Context, sku string) (ItemView, error) {
	if err := CheckSKU("sku", sku); err != nil {
		return ItemView{}, fmt.Errorf("item %q: %w", sku, ErrNotFound) // a name that cannot be has no item
	}
	return s.Store.Item(ctx, sku)
}

// Restock adds units to an item and returns the item as it then was. expected, if it is not nil, says whether the item is
// what the caller takes it for; it is asked inside the section, where nobody can change the item after it was asked.
func (s *Service) Restock(ctx context.Context, sku string, quantity int64, expected func(Item) bool, once *Once) (item Item, receipt Receipt, err error) {
	if err := CheckSKU("sku", sku); err != nil {
		return Item{}, Receipt{}, fmt.Errorf("item %q: %w", sku, ErrNotFound)
	}
	if quantity < 1 || quantity > MaxStock {
		return Item{}, Receipt{}, Invalid("quantity", "must be between 1 and %d", MaxStock)
	}
	section := Section{Keys: []Key{ItemKey(sku)}, Once: once, Result: func() any { return item }}
	section.Run = func(ctx context.Context, tx Tx) error {
		var err error
		if item, err = tx.Item(ctx, sku); err != nil {
			return err
		}
		if expected != nil && !expected(item) {
			return fmt.Errorf("restocking %s: %w", sku, ErrChanged)
		}
		if err := item.Restock(quantity); err != nil {
			return err
		}
		tx.PutItem(item, Entry{Kind: EntryRestock})
		return nil
	}
	receipt, err = s.Guard.Do(ctx, section)
	return item, receipt, err
}

// NewReservation is the input of Reserve.
type NewReservation struct {
	SKU        string
	Quantity   int64
	CustomerID string
	TTL        time.Duration // 0: the configured default
}

// Reserve takes stock and holds it until it is confirmed, released, or has expired.
func (s *Service) Reserve(ctx context.Context, caller Caller, in NewReservation, once *Once) (Reservation, Receipt, error) {
	if err := CheckSKU("sku", in.SKU); err != nil {
		return Reservation{}, Receipt{}, fmt.Errorf("item %q: %w", in.SKU, ErrNotFound)
	}
	if err := checkQuantity("quantity", in.Quantity); err != nil {
		return Reservation{}, Receipt{}, err
	}
	if err := checkText("customer_id", in.CustomerID, 0, 64); err != nil {
		return Reservation{}, Receipt{}, err
	}
	if in.TTL == 0 {
		in.TTL = s.HoldTTL
	}
	if in.TTL < time.Second || in.TTL > s.MaxTTL {
		return Reservation{}, Receipt{}, Invalid("ttl_seconds", "must be between 1 and %d", int64(s.MaxTTL/time.Second))
	}
	r := Reservation{
		ID:         ReservationPrefix + s.NewID(),
		State:      Held,
		Lines:      []Line{{SKU: in.SKU, Quantity: in.Quantity}},
		CustomerID: in.CustomerID,
		CreatedBy:  caller.ID,
	}
	section := Section{Keys: r.Keys(), Alone: s.Review != nil, Once: once, Result: func() any { return r }}
	section.Run = func(ctx context.Context, tx Tx) error {
		item, err := tx.Item(ctx, in.SKU)
		if err != nil {
			return err
		}
		if err := item.Hold(in.Quantity); err != nil {
			return err
		}
		r.CreatedAt = s.now() // a hold that waited for its lock is not born old
		r.ExpiresAt = r.CreatedAt.Add(in.TTL)
		if s.Review != nil {
			if err := tx.Slow(ctx, func(ctx context.Context) error { return s.Review(ctx, r) }); err != nil {
				return fmt.Errorf("reviewing the reservation: %w", err)
			}
		}
		tx.PutItem(item, Entry{Kind: EntryHold, Reference: r.ID})
		tx.PutReservation(r)
		return nil
	}
	var receipt Receipt
	do := func() (err error) {
		receipt, err = s.Guard.Do(ctx, section)
		return err
	}
	err := bounded(ctx, s.Holding, caller, do)
	if refusal := err; errors.Is(refusal, ErrTooManyHolds) && once != nil {
		// It may be one of those holds that is asked for again.
		section.Run = func(context.Context, Tx) error { return refusal }
		err = do()
	}
	return r, receipt, err
}

// Reservation finds one reservation that the caller may see.
func (s *Service) Reservation(ctx context.Context, caller Caller, id string) (Reservation, error) {
	r, err := s.Store.Reservation(ctx, id)
	if err != nil {
		return Reservation{}, err
	}
	if !caller.sees(r.CreatedBy) {
		return Reservation{}, fmt.Errorf("reservation %s: %w", id, ErrNotFound)
	}
	return r, nil
}

// Confirm turns a held reservation into a sale. Confirming twice is confirming once.
func (s *Service) Confirm(ctx context.Context, caller Caller, id string, once *Once) (Reservation, Receipt, error) {
	return s.settle(ctx, caller, id, once, EntryConfirm, (*Reservation).confirm, (*Item).Confirm)
}

// Release gives the units of a held reservation back. Releasing twice is releasing once.
func (s *Service) Release(ctx context.Context, caller Caller, id string, once *Once) (Reservation, Receipt, error) {
	return s.settle(ctx, caller, id, once, EntryRelease, (*Reservation).release, (*Item).Release)
}

// settle ends a hold in one way or another. What is read first only tells which keys are needed; whether the transition is
// possible is decided again inside the section.
func (s *Service) settle(ctx context.Context, caller Caller, id string, once *Once, why EntryKind,
	transition func(*Reservation, time.Time) (bool, error), move func(*Item, int64) error,
) (r Reservation, receipt Receipt, err error) {
	before, err := s.Reservation(ctx, caller, id)
	if err != nil {
		return Reservation{}, Receipt{}, err
	}
	section := Section{Keys: before.Keys(), Reads: Reads{Reservations: []string{id}}, Once: once, Result: func() any { return r }}
	section.Run = func(ctx context.Context, tx Tx) error {
		var err error
		if r, err = tx.Reservation(ctx, id); err != nil {
			return err
		}
		changed, err := transition(&r, s.now())
		if err != nil || !changed {
			return err
		}
		for _, line := range r.Lines {
			item, err := tx.Item(ctx, line.SKU)
			if err != nil {
				return err
			}
			if err := move(&item, line.Quantity); err != nil {
				return err
			}
			tx.PutItem(item, Entry{Kind: why, Reference: r.ID})
		}
		tx.PutReservation(r)
		return nil
	}
	receipt, err = s.Guard.Do(ctx, section)
	return r, receipt, err
}
