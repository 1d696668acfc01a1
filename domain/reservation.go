package domain

import (
	"fmt"
	"time"
)

// ReservationState is where a reservation is in its life: held, then one of the others for good.
type ReservationState string

// The states of a reservation.
const (
	Held      ReservationState = "held"
	Confirmed ReservationState = "confirmed"
	Released  ReservationState = "released"
	Expired   ReservationState = "expired"
)

// Reservation has taken stock. All its lines share one state.
type Reservation struct {
	ID         string
	State      ReservationState
	Lines      []Line
	CustomerID string // whom the caller bought for; free text of the caller's
	CreatedBy  string // the caller
	CreatedAt  time.Time
	ExpiresAt  time.Time
	SettledAt  time.Time // zero while held
	Tied       []TiedUse
}

// Line is one item of a reservation.
type Line struct {
	SKU      string
	Quantity int64
}

// TiedUse is a use of a coupon that goes with a reservation: it is given back when the units are.
type TiedUse struct {
	Redemption string // its id
	Code       string
}

// Keys are the resources that the reservation holds units of.
func (r Reservation) Keys() []Key {
	keys := make([]Key, len(r.Lines))
	for i, l := range r.Lines {
		keys[i] = ItemKey(l.SKU)
	}
	return keys
}

// confirm, release and expire are repeatable: changed is false, and nothing is to be written, when the reservation already
// is where it should go.

func (r *Reservation) confirm(now time.Time) (changed bool, err error) {
	switch {
	case r.State == Confirmed:
		return false, nil
	case r.State == Expired, r.State == Held && !now.Before(r.ExpiresAt):
		return false, fmt.Errorf("confirming %s, held until %s: %w", r.ID, r.ExpiresAt.Format(time.RFC3339), ErrExpired)
	case r.State != Held:
		return false, fmt.Errorf("confirming %s, which is %s: %w", r.ID, r.State, ErrWrongState)
	}
	r.State, r.SettledAt = Confirmed, now
	return true, nil
}

func (r *Reservation) release(now time.Time) (changed bool, err error) {
	switch r.State {
	case Released:
		return false, nil
	case Held:
		r.State, r.SettledAt = Released, now
		return true, nil
	case Expired:
		return false, fmt.Errorf("releasing %s: %w", r.ID, ErrExpired)
	}
	return false, fmt.Errorf("releasing %s, which is %s: %w", r.ID, r.State, ErrWrongState)
}

// expire leaves alone what is not held any more, or not due: the sweep looks before it has the lock.
func (r *Reservation) expire(now time.Time) (changed bool, err error) {
	if r.State != Held || now.Before(r.ExpiresAt) {
		return false, nil
	}
	r.State, r.SettledAt = Expired, now
	return true, nil
}

// open tells whether a coupon may still be used with the reservation.
func (r Reservation) open(now time.Time) error {
	switch {
	case r.State == Expired, r.State == Held && !now.Before(r.ExpiresAt):
		return fmt.Errorf("using a coupon with %s: %w", r.ID, ErrExpired)
	case r.State == Released:
		return fmt.Errorf("using a coupon with %s, which is %s: %w", r.ID, r.State, ErrWrongState)
	}
	return nil
}
