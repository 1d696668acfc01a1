package domain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxLines is how many lines an order may have.
const MaxLines = 20

// NewReservation is the input of Reserve.
type NewReservation struct {
	SKU        string
	Quantity   int64
	CustomerID string
	TTL        time.Duration // 0: the configured default
}

// Reserve takes stock of one item and holds it until it is confirmed, released, or has expired. The once of the request is
// asked to encode an Order.
func (s *Service) Reserve(ctx context.Context, caller Caller, in NewReservation, once *Once) (Reservation, Receipt, error) {
	if err := CheckSKU("sku", in.SKU); err != nil {
		return Reservation{}, Receipt{}, fmt.Errorf("item %q: %w", in.SKU, ErrNotFound)
	}
	if err := checkQuantity("quantity", in.Quantity); err != nil {
		return Reservation{}, Receipt{}, err
	}
	order, receipt, err := s.hold(ctx, caller, NewOrder{
		Lines: []Line{{SKU: in.SKU, Quantity: in.Quantity}}, CustomerID: in.CustomerID, TTL: in.TTL,
	}, once)
	return order.Reservation, receipt, err
}

// NewOrder is the input of Order.
type NewOrder struct {
	Lines      []Line // those for one item are merged
	Coupon     string // the code of one to use; empty: none
	CustomerID string // required with a coupon
	TTL        time.Duration
}

// Order is a reservation, with the use of the coupon that was made with it.
type Order struct {
	Reservation
	Redemption *Redemption // nil without a coupon
}

// Order takes stock of several items, and a use of a coupon if there is one: all of it or nothing.
func (s *Service) Order(ctx context.Context, caller Caller, in NewOrder, once *Once) (Order, Receipt, error) {
	lines, err := merge(in.Lines)
	if err != nil {
		return Order{}, Receipt{}, err
	}
	asked := in.Lines
	in.Lines = lines
	var order Order
	var receipt Receipt
	do := func() (err error) {
		if order, receipt, err = s.hold(ctx, caller, in, once); errors.Is(err, ErrNotFound) {
			err = s.missing(ctx, asked, in.Coupon)
		}
		return err
	}
	if in.Coupon == "" {
		err = do()
	} else {
		err = bounded(ctx, s.Guessing, caller, do) // an order is another way to try a code
	}
	return order, receipt, err
}

// merge checks the lines of an order, and makes one of those for the same item: two of which each has enough stock could
// together have not. The result is in the order in which lines are stored.
func merge(lines []Line) (merged []Line, err error) {
	if len(lines) < 1 || len(lines) > MaxLines {
		return nil, Invalid("lines", "must have 1 to %d lines", MaxLines)
	}
	for i, line := range lines {
		if err := CheckSKU(lineField(i, "sku"), line.SKU); err != nil {
			return nil, err
		}
		if err := checkQuantity(lineField(i, "quantity"), line.Quantity); err != nil {
			return nil, err
		}
		same := slices.IndexFunc(merged, func(m Line) bool { return m.SKU == line.SKU })
		if same < 0 {
			merged = append(merged, line)
			continue
		}
		merged[same].Quantity += line.Quantity
		if merged[same].Quantity > MaxQuantity {
			return nil, Invalid(lineField(i, "quantity"), "must be at most %d together with the other lines for %s", MaxQuantity, line.SKU)
		}
	}
	slices.SortFunc(merged, func(a, b Line) int { return cmp.Compare(a.SKU, b.SKU) })
	return merged, nil
}

func lineField(i int, name string) string { return fmt.Sprintf("lines[%d].%s", i, name) }

// missing says what it was that an order asked for and that does not exist. Items come first, whatever the coupon: which of
// the two is complained of must not tell whether the code is real.
func (s *Service) missing(ctx context.Context, lines []Line, coupon string) error {
	for i, line := range lines {
		if _, err := s.Store.Item(ctx, line.SKU); errors.Is(err, ErrNotFound) {
			return Invalid(lineField(i, "sku"), "must name an item")
		} else if err != nil {
			return err
		}
	}
	if coupon == "" { // the item has been made in the meantime
		return Invalid("lines", "must name items that exist")
	}
	return fmt.Errorf("coupon %q: %w", coupon, ErrCouponExpired)
}

// hold takes stock, and a use of a coupon if one is named. The coupon is decided on first: a refusal that is about the stock
// must not tell that a code exists which cannot be used.
func (s *Service) hold(ctx context.Context, caller Caller, in NewOrder, once *Once) (order Order, receipt Receipt, err error) {
	least := 0
	if in.Coupon != "" {
		least = 1
		if CheckCode("coupon", in.Coupon) != nil {
			return Order{}, Receipt{}, fmt.Errorf("coupon %q: %w", in.Coupon, ErrCouponExpired)
		}
	}
	if err := checkText("customer_id", in.CustomerID, least, 64); err != nil {
		return Order{}, Receipt{}, err
	}
	if in.TTL == 0 {
		in.TTL = s.HoldTTL
	}
	if in.TTL < time.Second || in.TTL > s.MaxTTL {
		return Order{}, Receipt{}, Invalid("ttl_seconds", "must be between 1 and %d", int64(s.MaxTTL/time.Second))
	}
	order.Reservation = Reservation{
		ID: ReservationPrefix + s.NewID(), State: Held, Lines: in.Lines, CustomerID: in.CustomerID, CreatedBy: caller.ID,
	}
	section := Section{Keys: order.Keys(), Alone: s.Review != nil, Once: once, Result: func() any { return order }}
	if in.Coupon != "" {
		use := &Redemption{
			ID: RedemptionPrefix + s.NewID(), Code: in.Coupon, CustomerID: in.CustomerID, ReservationID: order.ID,
			State: Redeemed, CreatedBy: caller.ID,
		}
		order.Redemption, order.Tied = use, []TiedUse{{Redemption: use.ID, Code: use.Code}}
		section.Keys = append(section.Keys, CouponKey(in.Coupon))
		section.Reads.Uses = []Use{{in.Coupon, in.CustomerID}}
	}
	section.Run = func(ctx context.Context, tx Tx) (err error) {
		order.CreatedAt = s.now() // a hold that waited for its lock is not born old
		order.ExpiresAt = order.CreatedAt.Add(in.TTL)
		var coupon Coupon
		if use := order.Redemption; use != nil {
			use.CreatedAt = order.CreatedAt
			if coupon, err = redeem(ctx, tx, *use); err != nil {
				return err
			}
		}
		items, err := take(ctx, tx, order.Lines)
		if err != nil {
			return err
		}
		if s.Review != nil {
			if err := tx.Slow(ctx, func(ctx context.Context) error { return s.Review(ctx, order.Reservation) }); err != nil {
				return fmt.Errorf("reviewing the reservation: %w", err)
			}
		}
		for _, item := range items {
			tx.PutItem(item, Entry{Kind: EntryHold, Reference: order.ID})
		}
		tx.PutReservation(order.Reservation)
		if use := order.Redemption; use != nil {
			tx.PutCoupon(coupon, Entry{Kind: EntryRedeem, Reference: use.ID})
			tx.PutRedemption(*use)
		}
		return nil
	}
	do := func() (err error) {
		receipt, err = s.Guard.Do(ctx, section)
		return err
	}
	err = bounded(ctx, s.Holding, caller, do)
	if refusal := err; errors.Is(refusal, ErrTooManyHolds) && once != nil {
		// It may be one of those holds that is asked for again.
		section.Run = func(context.Context, Tx) error { return refusal }
		err = do()
	}
	return order, receipt, err
}

// take decides whether there is enough of every item, and names all of which there is not.
func take(ctx context.Context, tx Tx, lines []Line) (items []Item, err error) {
	var short OutOfStockError
	for _, line := range lines {
		item, err := tx.Item(ctx, line.SKU)
		if err != nil {
			return nil, err
		}
		if e, ok := errors.AsType[*OutOfStockError](item.Hold(line.Quantity)); ok {
			short.Items = append(short.Items, e.Items...)
		}
		items = append(items, item)
	}
	if len(short.Items) > 0 {
		return nil, &short
	}
	return items, nil
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
