package locking

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"fencepost/domain"
)

// watcher is told what happens.
type watcher struct {
	tell  func(domain.Event) // nil: nobody watches
	trace func(context.Context, string, []domain.Key) (context.Context, func([]domain.Grant, error))

	mu     sync.Mutex
	others map[domain.Scope]int64 // the newest epoch of each scope that was told to be another's
}

func (g *Guard) observe(e domain.Event) {
	if g.watcher.tell != nil {
		e.At = time.Now()
		g.watcher.tell(e)
	}
}

func (g *Guard) span(ctx context.Context, name string, keys []domain.Key) (context.Context, func([]domain.Grant, error)) {
	if g.watcher.trace == nil {
		return ctx, func([]domain.Grant, error) {}
	}
	return g.watcher.trace(ctx, name, keys)
}

// ended reports a section to which its caller gets the answer.
func (g *Guard) ended(keys []domain.Key, began time.Time, receipt domain.Receipt, err error) {
	e := domain.Event{Kind: domain.EventSection, Grants: receipt.Grants, Err: err, LockWait: receipt.LockWait}
	if e.Grants == nil { // it did not come to its transaction, or has panicked there
		e.LockWait = time.Since(began)
		for _, key := range keys {
			a, _ := g.reigns.recall(key)
			e.Grants = append(e.Grants, domain.Grant{Key: key, Strategy: a.Strategy, Epoch: a.Epoch})
		}
		if err == nil {
			e.Err = errPanicked
		}
	}
	g.observe(e)
}

// began reports that the locks are held, as far as they are not the transaction's own.
func (h *hold) began() {
	e := domain.Event{Kind: domain.EventBegan, Grants: slices.Clone(h.grants), Acquire: h.acquire} // transact gives row locks their tokens
	if len(h.taken) > 0 {
		e.Term = h.taken[0].Term
	}
	h.guard.observe(e)
}

// renewing reports a renewal.
func (h *hold) renewing(grant domain.Grant, lease *Lease) func() {
	return func() {
		h.guard.observe(domain.Event{Kind: domain.EventRenewed, Grants: []domain.Grant{grant}, Term: lease.Term})
	}
}

// released reports locks that were held.
func (h *hold) released() {
	if h.since.IsZero() {
		return // not all of them were
	}
	e := domain.Event{Kind: domain.EventReleased, Grants: h.grants, Acquire: h.acquire, Hold: h.working}
	if len(h.taken) > 0 {
		e.Hold = time.Since(h.since)
	}
	h.guard.observe(e)
}

// losing is lose, and reports it.
func (h *hold) losing(grant domain.Grant) context.CancelCauseFunc {
	return func(cause error) {
		h.guard.observe(domain.Event{Kind: domain.EventLost, Grants: []domain.Grant{grant}, Err: cause})
		h.lose(cause)
	}
}

// superseded is the error in which a reign ends that is not this instance's. It is reported once: a superseded instance
// meets it at every request.
func (g *Guard) superseded(a domain.Authority, why string) error {
	g.watcher.mu.Lock()
	first := g.watcher.others[a.Scope] < a.Epoch
	if first {
		if g.watcher.others == nil {
			g.watcher.others = map[domain.Scope]int64{}
		}
		g.watcher.others[a.Scope] = a.Epoch
	}
	g.watcher.mu.Unlock()
	if first {
		g.observe(domain.Event{Kind: domain.EventSuperseded, Authority: &a})
	}
	return fmt.Errorf("%w: %s is run by %s since %s; %s",
		domain.ErrSuperseded, a.Scope, a.Strategy, a.Since.UTC().Format("2006-01-02 15:04:05"), why)
}
