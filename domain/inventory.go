package domain

import (
	"context"
	"fmt"
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

// lockSpec fills in the default of fencing, and has the guard judge the rest.
func (s *Service) lockSpec(ctx context.Context, kind Kind, strategy string, fencing Fencing) (LockSpec, error) {
	switch fencing {
	case "":
		fencing = s.Fencing
	case FencingEnforced, FencingOff:
	default:
		return LockSpec{}, Invalid("lock.fencing", "must be %q or %q", FencingEnforced, FencingOff)
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
