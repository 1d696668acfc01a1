package locking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"fencepost/domain"
)

// Database is what a guard needs of PostgreSQL: transactions that present, and the table of authorities. The store
// implements it; the two packages know each other only by this.
type Database interface {
	// Transact runs fn in a transaction that has presented the grants in their order before anything else. Grants with
	// RowLock take their lock and their token there. fn may run more than once. It uses one connection.
	Transact(ctx context.Context, grants []domain.Grant, lockWait time.Duration,
		fn func(context.Context, domain.Tx) error) (domain.Receipt, error)
	// Authority is the one in charge of a resource, AuthorityOf of a scope; domain.ErrNotFound if there is none.
	Authority(ctx context.Context, key domain.Key) (domain.Authority, error)
	AuthorityOf(ctx context.Context, scope domain.Scope) (domain.Authority, error)
	ClaimAuthority(ctx context.Context, scope domain.Scope, strategy, fingerprint string) (domain.Authority, error)
	RaiseEpoch(ctx context.Context, scope domain.Scope, from int64) (domain.Authority, error)
	Reigns(ctx context.Context) (shared []domain.Authority, own map[string]int64, err error)
	RecordRefusal(ctx context.Context, r domain.Refusal) error
}

// Options of a guard.
type Options struct {
	LockWait time.Duration // the longest wait for a lock
	Log      *slog.Logger
	// Observe, if set, is told what happens to locks and at the fence. It is called while locks are held, from several
	// goroutines at once, so it must not wait for anything.
	Observe func(domain.Event)
}

// Guard implements domain.Guard over any mix of strategies.
type Guard struct {
	db       Database
	backends Backends
	lockWait time.Duration
	log      *slog.Logger
	observer func(domain.Event) // nil: nobody watches
	reigns   reigns
}

var _ domain.Guard = (*Guard)(nil)

// NewGuard makes a guard. Claim tells it which strategy this instance uses for a scope.
func NewGuard(db Database, backends Backends, o Options) *Guard {
	return &Guard{db: db, backends: backends, lockWait: o.LockWait, log: o.Log, observer: o.Observe}
}

const (
	// How long giving a lock back may take. It is not bound to the request: a request that was cancelled must not leave
	// its lock to everybody else until the term ends.
	releaseTimeout = 2 * time.Second
	// What is left of the wait for PostgreSQL at the least: a section that has just got its lock must not fail because the
	// lock took all the time there was.
	minDatabaseWait = 250 * time.Millisecond
)

// Do implements domain.Guard.
func (g *Guard) Do(ctx context.Context, keys []domain.Key, fn func(context.Context, domain.Tx) error) (receipt domain.Receipt, err error) {
	keys = slices.Clone(keys)
	slices.Sort(keys) // everybody takes several keys in byte order, so nobody waits in a circle
	keys = slices.Compact(keys)
	if len(keys) == 0 {
		return receipt, errors.New("locking: a section needs at least one key")
	}
	// A section is tried once, again after an epoch was raised by somebody else, and again for each key whose counter had
	// gone back. All tries share one wait.
	wait, cancel := context.WithTimeoutCause(ctx, g.lockWait, domain.ErrLockTimeout)
	defer cancel()
	for range 2 + len(keys) {
		var retry bool
		receipt, retry, err = g.once(ctx, wait, keys, fn)
		if !retry {
			break
		}
	}
	return receipt, err
}

// once runs the section one time. wait is the part of ctx in which the locks have to come free. retry means that nothing was
// written, and that the reason is gone.
func (g *Guard) once(ctx, wait context.Context, keys []domain.Key, fn func(context.Context, domain.Tx) error) (receipt domain.Receipt, retry bool, err error) {
	began := time.Now()
	section, lose := context.WithCancelCause(ctx)
	defer lose(nil) // stops the renewals

	grants := make([]domain.Grant, 0, len(keys))
	defer func() { g.ended(began, grants, receipt, err) }() // when the locks are given back
	held := make([]*Lease, 0, len(keys))
	defer func() {
		// In reverse, and before Do returns: the next in line goes on at once. Also when fn panics.
		for _, lease := range slices.Backward(held) {
			g.release(ctx, lease)
		}
	}()

	wait, cancel := context.WithCancelCause(wait)
	defer cancel(nil)
	defer context.AfterFunc(section, func() { cancel(context.Cause(section)) })() // a lease that is lost ends the wait for the next
	leases := make(map[domain.Key]*Lease, len(keys))
	for _, key := range keys {
		// The epoch is read before the acquire is sent. Read after it, a holder whose lock was already taken over by the
		// next reign could carry that reign's epoch.
		bound, err := g.reigns.bind(wait, g, key)
		if err != nil {
			return receipt, false, waitError(wait, err)
		}
		grant := domain.Grant{
			Key: key, Strategy: bound.backend.Name, Epoch: bound.authority.Epoch,
			ID: domain.GrantID(uuid.New()), RowLock: bound.backend.RowLocks,
		}
		if bound.backend.Locker != nil {
			lease, err := bound.backend.Locker.Acquire(wait, key, grant.ID)
			if err != nil {
				grants = append(grants, grant)
				return receipt, false, fmt.Errorf("acquiring %s: %w", key, waitError(wait, err))
			}
			held = append(held, lease)
			leases[key] = lease
			grant.Token = lease.Token
			if lease.Extend != nil {
				go lease.keep(section, g.losing(grant, lose))
			}
		}
		grants = append(grants, grant)
	}
	waited := time.Since(began)

	deadline, _ := wait.Deadline()
	receipt, err = g.db.Transact(section, grants, max(time.Until(deadline), minDatabaseWait), fn)
	receipt.LockWait += waited
	if receipt.Grants == nil {
		receipt.Grants = grants
	}
	var refused *domain.RefusedError
	if errors.As(err, &refused) {
		retry = g.refused(ctx, refused, leases[refused.Refusal.Grant.Key])
	}
	return receipt, retry, err
}

// waitError names the reason why a wait was cut short; drivers only report that their context ended.
func waitError(wait context.Context, err error) error {
	if wait.Err() != nil && !errors.Is(err, domain.ErrLockTimeout) {
		return fmt.Errorf("%w (%w)", context.Cause(wait), err)
	}
	return err
}

func (g *Guard) release(ctx context.Context, lease *Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := lease.Release(ctx); err != nil && !errors.Is(err, domain.ErrLockLost) {
		g.log.Warn("a lock could not be given back yet", "error", err)
		Abandon(lease.Release)
	}
}

// refused records what the fence turned away, and finds out whether another try can help.
//
// A stale token has two causes. Either the lock was lost, and somebody newer has written: then the caller is told. Or the
// lock is held, and its authority has issued a token that it had issued before, because its counter has gone back: servers
// that were flushed, failed over, or set up anew. Then the epoch is raised, by compare-and-set, which makes the small
// tokens of now larger than the large ones of then. Raising needlessly would be harmless.
func (g *Guard) refused(ctx context.Context, e *domain.RefusedError, lease *Lease) (retry bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	grant := e.Refusal.Grant
	if err := g.db.RecordRefusal(ctx, e.Refusal); err != nil {
		g.log.Error("a refusal could not be recorded", "refusal", e.Error(), "error", err)
	}
	g.observe(domain.Event{Kind: domain.EventRefused, Refusal: &e.Refusal})
	g.log.Warn("the fence refused a write", "resource", grant.Key, "reason", e.Refusal.Reason, "strategy", grant.Strategy,
		"epoch", grant.Epoch, "token", grant.Token, "current_epoch", e.Refusal.CurrentEpoch, "current_token", e.Refusal.CurrentToken)

	switch {
	case errors.Is(e, domain.ErrSuperseded):
		// Perhaps only the epoch was raised, and this instance's strategy still is the one in charge.
		return g.reigns.refresh(ctx, g, grant.Key, grant.Epoch)
	case errors.Is(e, domain.ErrStaleToken):
		if lease != nil && lease.Extend != nil {
			if _, err := lease.Extend(ctx); err != nil {
				return false
			}
		}
		return g.reigns.raise(ctx, g, grant.Key, grant.Epoch)
	}
	return false
}
