package domain

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The errors that callers can tell apart. Every error that leaves a use case is one of these (errors.Is), the end of the
// caller's own context, a *Replay, or a fault of ours.
var (
	ErrInvalid           = errors.New("invalid input")
	ErrNotFound          = errors.New("not found")
	ErrAlreadyExists     = errors.New("already exists")
	ErrOutOfStock        = errors.New("not enough stock")
	ErrWrongState        = errors.New("not possible in this state")
	ErrChanged           = errors.New("changed since the caller has read it")
	ErrExpired           = errors.New("the reservation has expired")
	ErrCouponExhausted   = errors.New("the coupon is used up")
	ErrCouponExpired     = errors.New("the coupon is not valid now")
	ErrCustomerLimit     = errors.New("the customer has used this coupon as often as allowed")
	ErrTooManyHolds      = errors.New("the caller has as many open holds as allowed")
	ErrRateLimited       = errors.New("too many requests")
	ErrKeyReused         = errors.New("the idempotency key was used for another request")
	ErrCountersCorrupted = errors.New("an unfenced race has corrupted the counters")

	// ErrLockTimeout: the lock did not come free within the allowed wait. Nothing was written.
	ErrLockTimeout = errors.New("the lock did not come free in time")
	// ErrRowLocked: somebody else has locked the resource's row, and the section was not to wait for it, so it has not run. It
	// is run again, and reaches no caller.
	ErrRowLocked = errors.New("the row is locked")
	// ErrQueueFull: so many sections wait for the same lock already that this one would wait in vain. Nothing was written.
	ErrQueueFull = errors.New("too many wait for the same lock")
	// ErrLockLost: the holder can no longer be sure of its lock and gave up before COMMIT. Nothing was written.
	ErrLockLost = errors.New("the lock was lost")
	// ErrStaleToken: PostgreSQL refused the grant, because a newer one was seen. Nothing was written.
	ErrStaleToken = errors.New("stale fencing token")
	// ErrSuperseded: another strategy has taken over, which this instance may not or cannot use. Nothing was written.
	ErrSuperseded = errors.New("this instance's lock strategy has been superseded")
	// ErrFencingRequired: the resource is fenced, and the strategy issues no tokens.
	ErrFencingRequired = errors.New("the resource is fenced and the strategy issues no fencing tokens")
	// ErrUnavailable: a server that the request needs cannot be reached. Nothing was written.
	ErrUnavailable = errors.New("a server is not available")
	// ErrOutcomeUnknown: the connection broke while COMMIT was under way.
	ErrOutcomeUnknown = errors.New("the outcome is unknown")
)

// InvalidError names the field of the input that was refused, and what would be right.
type InvalidError struct {
	Field   string
	Problem string // "must be between 1 and 100"
}

func (e *InvalidError) Error() string { return e.Field + " " + e.Problem }

// Is makes every InvalidError an ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// Invalid is a short way to an *InvalidError.
func Invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// OutOfStockError names the items of which there is not enough.
type OutOfStockError struct{ Items []Shortage }

// Shortage is what was asked for of an item that has less.
type Shortage struct {
	SKU              string
	Asked, Available int64
}

func (e *OutOfStockError) Error() string {
	short := make([]string, len(e.Items))
	for i, s := range e.Items {
		short[i] = fmt.Sprintf("%d of %s asked for, %d available", s.Asked, s.SKU, s.Available)
	}
	return fmt.Sprintf("%s: %s", ErrOutOfStock, strings.Join(short, "; "))
}

// Is makes every OutOfStockError an ErrOutOfStock.
func (e *OutOfStockError) Is(target error) bool { return target == ErrOutOfStock }

// RefusedError is the fence's no, with what was presented and what stands.
type RefusedError struct {
	Refusal Refusal
	Err     error // ErrStaleToken, ErrSuperseded or ErrFencingRequired
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: presented %d.%d under %s, the fence is at %d.%d", e.Err,
		e.Refusal.Grant.Epoch, e.Refusal.Grant.Token, e.Refusal.Grant.Strategy, e.Refusal.CurrentEpoch, e.Refusal.CurrentToken)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// UnavailableError names the server that cannot be reached. Err is for the log.
type UnavailableError struct {
	Server string // "PostgreSQL", "Redis"
	Err    error
}

func (e *UnavailableError) Error() string { return e.Server + " is not available: " + e.Err.Error() }

// Is makes every UnavailableError an ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

func (e *UnavailableError) Unwrap() error { return e.Err }

// LimitedError is an ErrRateLimited that says when to come back.
type LimitedError struct{ After time.Duration }

func (e *LimitedError) Error() string {
	return fmt.Sprintf("%s: again after %s", ErrRateLimited, e.After)
}

// Is makes every LimitedError an ErrRateLimited.
func (e *LimitedError) Is(target error) bool { return target == ErrRateLimited }
