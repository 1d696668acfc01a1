package domain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ending is a way in which a hold ends.
type ending struct {
	why        EntryKind
	transition func(*Reservation, time.Time) (changed bool, err error)
	move       func(*Item, int64) error
	undo       bool // the uses of coupons that go with it are given back
}

var (
	confirming = ending{EntryConfirm, (*Reservation).confirm, (*Item).Confirm, false}
	releasing  = ending{EntryRelease, (*Reservation).release, (*Item).Release, true}
	expiring   = ending{EntryExpire, (*Reservation).expire, (*Item).Release, true}
)

// Confirm turns a held reservation into a sale. Confirming twice is confirming once.
func (s *Service) Confirm(ctx context.Context, caller Caller, id string, once *Once) (Reservation, Receipt, error) {
	return s.settle(ctx, caller, id, once, confirming)
}

// Release gives the units of a held reservation back, and the uses of coupons that go with it. Releasing twice is releasing
// once.
func (s *Service) Release(ctx context.Context, caller Caller, id string, once *Once) (Reservation, Receipt, error) {
	return s.settle(ctx, caller, id, once, releasing)
}

// settleTries is how often settle looks anew when a coupon was used with the reservation meanwhile.
const settleTries = 3

// settle ends a hold in one way or another. What is read first only tells which keys are needed; whether the transition is
// possible is decided again inside the section.
func (s *Service) settle(ctx context.Context, caller Caller, id string, once *Once, how ending) (r Reservation, receipt Receipt, err error) {
	for range settleTries {
		before, err := s.Reservation(ctx, caller, id)
		if err != nil {
			return Reservation{}, Receipt{}, err
		}
		section := how.section(before)
		section.Once, section.Result = once, func() any { return r }
		section.Run = func(ctx context.Context, tx Tx) (err error) {
			r, _, err = how.end(ctx, tx, id, s.now(), section.Keys)
			return err
		}
		if receipt, err = s.Guard.Do(ctx, section); !errors.Is(err, errTied) {
			return r, receipt, err
		}
	}
	return r, receipt, errTied
}

// section has the keys and the reads that it takes to end the reservations, which need the same keys.
func (e ending) section(reservations ...Reservation) (section Section) {
	section.Keys = e.keys(reservations[0])
	for _, r := range reservations {
		section.Reads.Reservations = append(section.Reads.Reservations, r.ID)
		if e.undo {
			for _, use := range r.Tied {
				section.Reads.Redemptions = append(section.Reads.Redemptions, use.Redemption)
			}
		}
	}
	return section
}

func (e ending) keys(r Reservation) []Key {
	keys := r.Keys()
	if e.undo {
		for _, use := range r.Tied {
			keys = append(keys, CouponKey(use.Code))
		}
	}
	return keys
}

// errTied means that a coupon was used with the reservation after its keys had been looked up. Whoever does that holds the
// items' keys, so it cannot happen after the section has begun.
var errTied = fmt.Errorf("a coupon was used with the reservation meanwhile: %w", ErrLockTimeout)

// end ends the hold in a section that holds keys. It puts all or, with an error, nothing.
func (e ending) end(ctx context.Context, tx Tx, id string, now time.Time, keys []Key) (r Reservation, changed bool, err error) {
	if r, err = tx.Reservation(ctx, id); err != nil {
		return r, false, err
	}
	after := r
	if changed, err = e.transition(&after, now); err != nil || !changed {
		return r, false, err
	}
	items := make([]Item, len(r.Lines))
	for i, line := range r.Lines {
		if items[i], err = tx.Item(ctx, line.SKU); err != nil {
			return r, false, err
		}
		if err := e.move(&items[i], line.Quantity); err != nil {
			return r, false, err
		}
	}
	var back []givenBack
	if e.undo {
		if back, err = undo(ctx, tx, r.Tied, now, keys); err != nil {
			return r, false, err
		}
	}
	for _, item := range items {
		tx.PutItem(item, Entry{Kind: e.why, Reference: r.ID})
	}
	tx.PutReservation(after)
	putBack(tx, back)
	return after, true, nil
}

// givenBack is a redemption as it is rolled back, and its coupon after that.
type givenBack struct {
	coupon     Coupon
	redemption Redemption
}

// undo decides what giving the uses back comes to.
func undo(ctx context.Context, tx Tx, uses []TiedUse, now time.Time, keys []Key) (back []givenBack, err error) {
	coupons := map[string]Coupon{} // one can have been used more than once
	for _, use := range uses {
		if !slices.Contains(keys, CouponKey(use.Code)) {
			return nil, errTied
		}
		redemption, err := tx.Redemption(ctx, use.Redemption)
		if err != nil {
			return nil, err
		}
		if redemption.State == RolledBack {
			continue
		}
		coupon, read := coupons[use.Code]
		if !read {
			if coupon, err = tx.Coupon(ctx, use.Code); err != nil {
				return nil, err
			}
		}
		if err := coupon.GiveBack(); err != nil {
			return nil, err
		}
		coupons[use.Code] = coupon
		redemption.State, redemption.SettledAt = RolledBack, now
		back = append(back, givenBack{coupon, redemption})
	}
	return back, nil
}

func putBack(tx Tx, back []givenBack) {
	for _, b := range back {
		tx.PutCoupon(b.coupon, Entry{Kind: EntryRollback, Reference: b.redemption.ID})
		tx.PutRedemption(b.redemption)
	}
}
