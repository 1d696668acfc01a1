package domain

import (
	"context"
	"time"
)

// Store is what the use cases need of the database outside a guarded section: reading, and creating what did not exist.
type Store interface {
	// Items lists items by resource, in byte order: at most limit of those after the key.
	Items(ctx context.Context, after Key, limit int64) ([]ItemView, error)
	Item(ctx context.Context, sku string) (ItemView, error)
	Coupon(ctx context.Context, code string) (CouponView, error)
	Reservation(ctx context.Context, id string) (Reservation, error)
	Redemption(ctx context.Context, id string) (Redemption, error)
	// CreateItem makes the item, its fence and its first ledger entry; ErrAlreadyExists if the SKU is taken. What was created
	// by the same Once before is a *Replay.
	CreateItem(ctx context.Context, item Item, lock LockSpec, once *Once) (ItemView, error)
	CreateCoupon(ctx context.Context, coupon Coupon, lock LockSpec, once *Once) (CouponView, error)
	// Resources lists the keys of all items and coupons, as Items lists items.
	Resources(ctx context.Context, after Key, limit int64) ([]Key, error)
	// Audit compares, for each of the resources, what was given out with what there ever was; ErrNotFound if one of them does
	// not exist.
	Audit(ctx context.Context, keys ...Key) ([]AuditRow, error)
}

// Fence is how a resource is guarded, and the newest grant that PostgreSQL has seen for it.
type Fence struct {
	Strategy string
	Fencing  Fencing
	Epoch    int64
	Token    Token
}

// ItemView is an item with its fence.
type ItemView struct {
	Item
	Fence Fence
}

// CouponView is a coupon with its fence.
type CouponView struct {
	Coupon
	Fence Fence
}

// Caller is who asks. Reservations and redemptions are visible to their maker and to admins.
type Caller struct {
	ID    string
	Admin bool
}

func (c Caller) sees(createdBy string) bool { return c.Admin || c.ID == createdBy }

// Service is the use cases. All fields but Review, Holding and Guessing are required; it is safe for concurrent use.
type Service struct {
	Guard   Guard
	Store   Store
	NewID   func() string    // a new UUIDv7 in its text form
	Now     func() time.Time // wall clock: for what people see, never for locks
	HoldTTL time.Duration    // how long a hold lasts when the request does not say
	MaxTTL  time.Duration    // the longest hold that may be asked for
	Fencing Fencing          // of resources that do not say

	// Review, if set, has the last word on a reservation that stock is there for, such as a fraud check has. It runs while
	// the lock is held, between the read and the write: the place where a lock is held for long.
	Review func(ctx context.Context, r Reservation) error

	// Holding and Guessing, if set, make an attempt for the caller, or refuse him: who has too many open holds
	// (ErrTooManyHolds), or has tried too many codes that are none (ErrRateLimited).
	Holding, Guessing func(ctx context.Context, caller Caller, attempt func() error) error
}

// bounded makes the attempt within a bound of the caller's, if there is one.
func bounded(ctx context.Context, bound func(context.Context, Caller, func() error) error, caller Caller, attempt func() error) error {
	if bound == nil {
		return attempt()
	}
	return bound(ctx, caller, attempt)
}

// Quota is what a caller may still ask for.
type Quota struct {
	Limit     int64 // requests in a window, over all instances; 0: there is no limit
	Window    time.Duration
	Remaining int64
	Reset     time.Duration // until the next window
}

// ReservationPrefix and RedemptionPrefix begin the ids of their kind, so that one cannot be taken for the other.
const (
	ReservationPrefix = "rsv_"
	RedemptionPrefix  = "rdm_"
)

func (s *Service) now() time.Time { return stored(s.Now()) }

// stored cuts a time to what PostgreSQL stores, so that what is answered at once and what is read later are equal.
func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
