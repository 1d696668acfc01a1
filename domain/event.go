package domain

import "time"

// EventKind says what an event tells of, and with that which of its fields are set.
type EventKind string

// The kinds of event. The name of each is the one that clients see.
const (
	// EventSection: a try of a section is over, and its locks are given back. Grants, Err, LockWait, Hold.
	EventSection EventKind = "section"
	// EventRefused: the fence has turned a transaction away. Refusal.
	EventRefused EventKind = "refused"
	// EventLost: a holder cannot be sure of its lock any more. Grants, Err.
	EventLost EventKind = "lost"
	// EventTakenOver: this instance has put its strategy, on its servers, in charge of a scope. Authority.
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
	Grants    []Grant // in the order in which they were acquired; the last one of a try that failed was perhaps only asked for
	Err       error   // why the section did not commit, how the loss was noticed; its text is for the log
	LockWait  time.Duration
	Hold      time.Duration // from the last lock that was acquired until all were given back
	Refusal   *Refusal
	Authority *Authority
}
