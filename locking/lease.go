package locking

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fencepost/domain"
)

// Locker is all that a lease strategy implements.
type Locker interface {
	// Acquire waits until key is held or ctx ends, without polling while the key is held by somebody else, and returns the
	// lease with its token. id is the grant's: the driver writes it where the lock is, and takes a lock that carries it for
	// its own (a reply may have been lost).
	//
	// On an error nothing stays behind: what was taken, or may have been, is given back, in the background if need be. A
	// server that cannot be reached is a *domain.UnavailableError. Acquire may be called concurrently.
	Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*Lease, error)
}

// Lease is a lock with a deadline, as a driver hands it out. It never changes; renewal keeps its own deadline.
type Lease struct {
	Token domain.Token
	// Until is when this process must stop believing in the lease: local monotonic time, counted from before the request
	// left, less a margin for clocks that run at different speeds.
	Until time.Time
	// Term is how long the lock server keeps the lock of a holder that it does not hear of.
	Term time.Duration
	// Waited says that somebody else had the lock when it was asked for, and may be waiting for it now.
	Waited bool
	// Extend asks for another term and returns its Until. It must never create what is not there any more: an answer of
	// domain.ErrLockLost is final. Nil: the lock has no term and cannot be lost, and Until and Term say nothing.
	Extend func(ctx context.Context) (until time.Time, err error)
	// Release gives the lock back if it is still this grant's, and only then.
	Release func(ctx context.Context) error
	// Gone, if not nil, is closed when the driver learns by itself that the lock is lost.
	Gone <-chan struct{}
}

// A lease is renewed when a third of its term has passed: two more tries fit in before it ends.
const renewalsPerTerm = 3

// keep renews the lease until ctx ends, and calls lose as soon as the holder cannot be sure of it any more: the deadline
// has passed, the lock server says so, or the driver does. It returns when ctx ends or the lease is lost. renewed is called
// after every renewal.
func (l *Lease) keep(ctx context.Context, renewed func(), lose context.CancelCauseFunc) {
	until := l.Until
	deadline := time.NewTimer(time.Until(until))
	defer deadline.Stop()
	renew := time.NewTicker(max(l.Term/renewalsPerTerm, time.Millisecond))
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.Gone:
			lose(fmt.Errorf("%w: its session has ended", domain.ErrLockLost))
			return
		case <-deadline.C:
			lose(fmt.Errorf("%w: its term ended without a renewal", domain.ErrLockLost))
			return
		case <-renew.C:
			extendCtx, cancel := context.WithDeadline(ctx, until)
			next, err := l.Extend(extendCtx)
			cancel()
			switch {
			case err == nil:
				until = next
				deadline.Reset(time.Until(until))
				renewed()
			case ctx.Err() != nil: // it was given back meanwhile, and is not lost
				return
			case errors.Is(err, domain.ErrLockLost):
				lose(err)
				return
			} // anything else may pass; the deadline decides
		}
	}
}

const (
	// The pause between two tries to give a lock back to a server that does not answer grows from one to the other.
	minAbandonPause = 100 * time.Millisecond
	maxAbandonPause = time.Second
	// A server that is silent for so long is not waited for: its terms end by themselves when it is back.
	abandonPatience = 2 * time.Minute
)

// Abandon gives back, in the background, what may be held at a server that did not answer, so that others need not wait for
// the end of a term once the server is there again. Only an answer ends it, and not the end of the term: a server that was
// paused executes what it had received when it goes on, and the term begins then. For the same reason the first "not yours"
// is asked for once more: the request that it answers may have overtaken the one that takes the lock. Abandon does not run
// on the caller's context, which is over in most of these cases.
func Abandon(release func(context.Context) error) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), abandonPatience)
		defer cancel()
		refusals := 0
		for pause := minAbandonPause; ; pause = min(2*pause, maxAbandonPause) {
			err := release(ctx)
			if errors.Is(err, domain.ErrLockLost) {
				refusals++
			}
			if err == nil || refusals == 2 {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}()
}
