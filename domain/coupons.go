package domain

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// NewCoupon is the input of CreateCoupon.
type NewCoupon struct {
	Code                  string // empty: a code that nobody can guess
	MaxRedemptions        int64
	PerCustomerLimit      int64 // 0: none
	ValidFrom, ValidUntil time.Time
	Strategy              string
	Fencing               Fencing
}

// CreateCoupon makes a coupon.
func (s *Service) CreateCoupon(ctx context.Context, in NewCoupon, once *Once) (CouponView, error) {
	if in.Code == "" {
		in.Code = newCode()
	}
	if err := CheckCode("code", in.Code); err != nil {
		return CouponView{}, err
	}
	if in.MaxRedemptions < 1 || in.MaxRedemptions > MaxStock {
		return CouponView{}, Invalid("max_redemptions", "must be between 1 and %d", MaxStock)
	}
	if in.PerCustomerLimit < 0 || in.PerCustomerLimit > MaxStock {
		return CouponView{}, Invalid("per_customer_limit", "must be between 1 and %d", MaxStock)
	}
	if err := checkTime("valid_from", in.ValidFrom); err != nil {
		return CouponView{}, err
	}
	if err := checkTime("valid_until", in.ValidUntil); err != nil {
		return CouponView{}, err
	}
	from, until := stored(in.ValidFrom), stored(in.ValidUntil)
	if !until.IsZero() && !until.After(from) {
		return CouponView{}, Invalid("valid_until", "must be later than valid_from")
	}
	lock, err := s.lockSpec(ctx, KindCoupon, in.Strategy, in.Fencing)
	if err != nil {
		return CouponView{}, err
	}
	return s.Store.CreateCoupon(ctx, Coupon{
		Code:             in.Code,
		MaxRedemptions:   in.MaxRedemptions,
		PerCustomerLimit: in.PerCustomerLimit,
		ValidFrom:        from,
		ValidUntil:       until,
	}, lock, once)
}

// Coupon finds one coupon.
func (s *Service) Coupon(ctx context.Context, code string) (CouponView, error) {
	if err := CheckCode("code", code); err != nil {
		return CouponView{}, fmt.Errorf("coupon %q: %w", code, ErrNotFound)
	}
	return s.Store.Coupon(ctx, code)
}

// NewRedemption is the input of Redeem.
type NewRedemption struct {
	Code          string
	CustomerID    string
	ReservationID string // optional
}

// Redeem takes one use of a coupon. A code that does not exist answers like one that has expired, so that codes cannot be
// found by trying.
func (s *Service) Redeem(ctx context.Context, caller Caller, in NewRedemption, once *Once) (Redemption, Receipt, error) {
	if err := checkText("customer_id", in.CustomerID, 1, 64); err != nil {
		return Redemption{}, Receipt{}, err
	}
	r := Redemption{
		ID:            RedemptionPrefix + s.NewID(),
		Code:          in.Code,
		CustomerID:    in.CustomerID,
		ReservationID: in.ReservationID,
		State:         Redeemed,
		CreatedBy:     caller.ID,
	}
	section := Section{Keys: []Key{CouponKey(in.Code)}, Reads: Reads{Uses: []Use{{in.Code, in.CustomerID}}}}
	section.Once, section.Result = once, func() any { return r }
	if in.ReservationID != "" {
		reservation, err := s.Reservation(ctx, caller, in.ReservationID)
		if errors.Is(err, ErrNotFound) {
			return Redemption{}, Receipt{}, Invalid("reservation_id", "must name a reservation of yours")
		} else if err != nil {
			return Redemption{}, Receipt{}, err
		}
		// Whoever ends the reservation holds these keys as well: either he finds this use and gives it back, or this finds
		// the reservation ended.
		section.Keys = append(section.Keys, reservation.Keys()...)
		section.Reads.Reservations = []string{in.ReservationID}
	}
	section.Run = func(ctx context.Context, tx Tx) error {
		r.CreatedAt = s.now() // not before the wait for the lock: a coupon that expired meanwhile has expired
		coupon, err := redeem(ctx, tx, r)
		if err != nil {
			return err
		}
		if in.ReservationID != "" {
			reservation, err := tx.Reservation(ctx, in.ReservationID)
			if err != nil {
				return err
			}
			if err := reservation.open(r.CreatedAt); err != nil {
				return err
			}
		}
		tx.PutCoupon(coupon, Entry{Kind: EntryRedeem, Reference: r.ID})
		tx.PutRedemption(r)
		return nil
	}
	var receipt Receipt
	err := bounded(ctx, s.Guessing, caller, func() (err error) {
		err = ErrNotFound
		if CheckCode("code", in.Code) == nil {
			receipt, err = s.Guard.Do(ctx, section)
		}
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("coupon %q: %w", in.Code, ErrCouponExpired)
		}
		return err
	})
	return r, receipt, err
}

// redeem decides on a use of a coupon, and returns the coupon as it is then.
func redeem(ctx context.Context, tx Tx, r Redemption) (coupon Coupon, err error) {
	if coupon, err = tx.Coupon(ctx, r.Code); err != nil {
		return coupon, err
	}
	var uses int64
	if coupon.PerCustomerLimit > 0 {
		if uses, err = tx.CustomerUses(ctx, r.Code, r.CustomerID); err != nil {
			return coupon, err
		}
	}
	return coupon, coupon.Redeem(uses, r.CreatedAt)
}

// Rollback gives the use of a redemption back, whatever becomes of its reservation. Rolling back twice is rolling back once.
func (s *Service) Rollback(ctx context.Context, caller Caller, id string, once *Once) (r Redemption, receipt Receipt, err error) {
	before, err := s.Store.Redemption(ctx, id)
	if err != nil {
		return Redemption{}, Receipt{}, err
	}
	if !caller.sees(before.CreatedBy) {
		return Redemption{}, Receipt{}, fmt.Errorf("redemption %s: %w", id, ErrNotFound)
	}
	section := Section{Keys: []Key{CouponKey(before.Code)}, Reads: Reads{Redemptions: []string{id}}}
	section.Once, section.Result = once, func() any { return r }
	section.Run = func(ctx context.Context, tx Tx) error {
		var err error
		if r, err = tx.Redemption(ctx, id); err != nil {
			return err
		}
		back, err := undo(ctx, tx, []TiedUse{{Redemption: id, Code: r.Code}}, s.now(), section.Keys)
		if err != nil || len(back) == 0 {
			return err
		}
		r = back[0].redemption
		putBack(tx, back)
		return nil
	}
	receipt, err = s.Guard.Do(ctx, section)
	return r, receipt, err
}
