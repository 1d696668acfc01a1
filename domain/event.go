package domain

import "time"

// EventKind says what an event tells of, and with that which of its fields are set.
type EventKind string

// The kinds of event. The name of each is the one that clients see.
const (
	// EventBegan: locks are held, and work under them begins. Row locks are taken by the work itself: their grants carry no
	// token yet. Without a lock there is nothing to wait for, and work begins all the same. Grants, Acquire, Term.
	EventBegan EventKind = "began"
	// EventRenewed: a lease was extended. Grants, Term.
	EventRenewed EventKind = "renewed"
	// EventSection: a section is over for its caller, who may have shared the locks. Grants, Err, LockWait.
	EventSection EventKind = "section"
	// EventBatch: a transaction has carried sections of one key. Grants, Batch.
	EventBatch EventKind = "batch"
	// EventReleased: locks were given back, after one section or a batch of them. Grants, Acquire, Hold.
	EventReleased EventKind = "released"
	// EventRefused: the fence has turned a transaction away. Refusal.
	EventRefused EventKind = "refused"
	// EventLost: a holder cannot be sure of its lock any more. Grants, Err.
	EventLost EventKind = "lost"
	// EventTakenOver: this instance has put its strategy, on its servers, in charge of a scope, or follows an order that has.
	// Authority.
	EventTakenOver EventKind = "taken_over"
	// EventRaised: this instance has begun a new epoch of the same authority, because its counter had gone back. Authority.
	EventRaised EventKind = "epoch_raised"
	// EventSuperseded: this instance has found another authority in charge of a scope that was its own. Authority.
	EventSuperseded EventKind = "superseded"
)

// Event is something that happened, in this instance, to a lock or at the fence. It is for metrics and for those who watch;
// no decision depends on it. It is handed on by value and kept for a while, so nothing that it points to may change.
type Event struct {
	Kind      EventKind
	At        time.Time
	Grants    []Grant       // in the order of their keys; those of a section that got no lock are what it would have had, less the token
	Err       error         // why the section did not commit, how the loss was noticed; its text is for the log
	LockWait  time.Duration // until the last lock was held or the wait was given up, the time in the queue included
	Batch     int           // sections
	Acquire   time.Duration // from asking for the first lock until the last was held; the time in a queue before is not in it
	Term      time.Duration // how long the lock server keeps the leases of a holder that falls silent from now on; 0 without leases
	Hold      time.Duration // from the last lock that was acquired until all were given back; of row locks, the time in transactions
	Refusal   *Refusal
	Authority *Authority
}
