package domain

import (
	"context"
	"time"
)

// Fencing says whether PostgreSQL refuses stale writes to a resource. It is set when the resource is created.
type Fencing string

// FencingOff exists so that the danger can be shown.
const (
	FencingEnforced Fencing = "enforced"
	FencingOff      Fencing = "off"
)

// Token is the number that a lock's own authority issued together with the lock. It rises strictly per key, within one
// epoch. 0 means that the strategy issues none.
type Token int64

// GrantID tells two grants with the same token apart. It is a UUID.
type GrantID [16]byte

// Grant is one acquisition of one key. It is fixed at the acquire and never re-read or renewed.
type Grant struct {
	Key      Key
	Strategy string
	Epoch    int64 // read before the acquire was sent
	Token    Token
	ID       GrantID
	RowLock  bool // the lock is a row of the transaction that presents, which issues the token as well
}

// Authority is the reign of one lock authority over a scope.
type Authority struct {
	Scope       Scope
	Strategy    string
	Fingerprint string // names the servers: other servers issue other tokens
	Epoch       int64
	Since       time.Time
	DecidedBy   Decider
}

// Decider says whose decision it was to put an authority in charge.
type Decider string

const (
	// ByConfiguration: an instance took over when it started.
	ByConfiguration Decider = "configuration"
	// ByOperator: an order. Instances that are configured otherwise follow it, also those that start.
	ByOperator Decider = "operator"
	// ByBoth: an order with which an instance that started later agrees. Who runs follows it; who starts otherwise takes over.
	ByBoth Decider = "both"
)

// LockSpec is the strategy and the fencing that a resource is created with.
type LockSpec struct {
	Strategy    string // empty: the one in charge of the resource's kind
	Fingerprint string // of the strategy's servers; empty without a strategy
	Fencing     Fencing
}

// Refusal is a write that the fence turned away.
type Refusal struct {
	Grant        Grant
	Reason       string // the code of the error: stale_fencing_token, strategy_superseded, fencing_required
	CurrentEpoch int64
	CurrentToken Token
	CurrentGrant GrantID // zero if the fence did not say
}

// Receipt says under which grants a section ran and where its time went. It is for headers and metrics; no decision
// depends on it.
type Receipt struct {
	Grants   []Grant
	Batch    int           // sections that shared the transaction, this one included; 0 if there was none
	LockWait time.Duration // until the last lock was held, the times in the queue and for a connection included
	Database time.Duration // the rest of the transaction, to the answer of COMMIT
}

// Section is a critical section: what is done while its keys are held.
type Section struct {
	Keys []Key // what Run reads and puts belongs to these; may be unsorted and may repeat
	// Reads is what Run is going to read besides the items and coupons of Keys. It is fetched together with them; what is
	// not named here costs a round trip of its own when it is read.
	Reads Reads
	// Alone keeps the section's lock and transaction to itself. A section that calls Tx.Slow must set it: others would have
	// to wait for a step that is not theirs.
	Alone bool
	// Once, if not nil, has the section run at most once: if its key has an answer, Do returns a *Replay, and ErrKeyReused if
	// that is the answer to another request. Result is what Run has assigned, for the answer.
	Once   *Once
	Result func() any
	// Run decides. It may run more than once, so it must assign its results, not collect them, and change nothing but tx.
	// ctx ends when ownership is lost; context.Cause says why. An error undoes what this section has put, and nothing else.
	Run func(ctx context.Context, tx Tx) error
}

// Collect says which sections run in a transaction. It is called when there is a connection, and once more when the
// transaction has presented its grants, with presented set; one that takes row locks presents first. What it returns runs after
// what it has returned before, which it does not return again, not even to another try of the transaction. So who comes while
// the server is asked need not wait for the next one. The second call may wait for somebody to come, for no longer than a lock
// would take to change hands.
type Collect func(presented bool) []Section

// Only collects these sections.
func Only(sections ...Section) Collect {
	return func(bool) []Section {
		only := sections
		sections = nil
		return only
	}
}

// Reads names rows by their ids.
type Reads struct {
	Reservations []string
	Redemptions  []string
	Uses         []Use
}

// Use asks how often a customer has used a coupon.
type Use struct{ Code, Customer string }

// Guard runs critical sections. It hides from the use cases which strategy excludes whom.
type Guard interface {
	// Do runs the section in a transaction while every key is held, after that transaction has presented its grants. The
	// transaction may be shared with other sections that wait for the same key; none of them notices another but by its
	// effect, as if each had the lock in turn.
	//
	// A nil error means that what the section has put is committed. Every other error means that it is not, except
	// ErrOutcomeUnknown. Do gives up waiting when ctx ends or the configured wait is over (ErrLockTimeout); a section that
	// has begun is seen to its end.
	Do(ctx context.Context, section Section) (Receipt, error)

	// Spec completes the lock of a resource that is about to be created: an unknown or unavailable strategy, or one that
	// cannot do what fencing demands, is an *InvalidError.
	Spec(ctx context.Context, kind Kind, strategy string, fencing Fencing) (LockSpec, error)
}

// Tx is a transaction that has presented for its keys, seen as a unit of work: a resource is read once, then kept in
// memory, and what was put is written in one go with the commit. An item or coupon has to be read before it is put;
// putting something that belongs to a key which the section does not hold is refused by the database.
type Tx interface {
	// Slow runs a step that takes its time (a payment, a fraud check) between what was read and what will be put. Under a
	// lease no database connection is held meanwhile; a row lock keeps one. When it returns nil, what was read before still
	// holds. Nothing may have been put yet.
	Slow(ctx context.Context, step func(context.Context) error) error

	Item(ctx context.Context, sku string) (Item, error)
	// PutItem sets the item's new absolute state. The store notes the difference in the ledger, under the entry's name.
	PutItem(item Item, why Entry)

	Reservation(ctx context.Context, id string) (Reservation, error)
	PutReservation(r Reservation)

	Coupon(ctx context.Context, code string) (Coupon, error)
	PutCoupon(c Coupon, why Entry)

	// CustomerUses counts the redemptions of the coupon by the customer that were not rolled back.
	CustomerUses(ctx context.Context, code, customer string) (int64, error)
	Redemption(ctx context.Context, id string) (Redemption, error)
	PutRedemption(r Redemption)
}

// EntryKind is the reason for a change of a counter.
type EntryKind string

// The kinds of ledger entries.
const (
	EntryCreate   EntryKind = "create"
	EntryRestock  EntryKind = "restock"
	EntryHold     EntryKind = "hold"
	EntryConfirm  EntryKind = "confirm"
	EntryRelease  EntryKind = "release"
	EntryExpire   EntryKind = "expire"
	EntryRedeem   EntryKind = "redeem"
	EntryRollback EntryKind = "rollback"
)

// Entry explains a change of a counter in the ledger.
type Entry struct {
	Kind      EntryKind
	Reference string // id of the reservation or redemption, if the change belongs to one
}
