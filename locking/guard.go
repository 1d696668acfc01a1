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
	// Transact runs the sections that collect says, one after the other, in a transaction that has presented the grants in
	// their order before anything else. Grants with RowLock take their lock and their token there. With skipLocked, a row that
	// somebody else has locked is not waited for: the sections for it do not run, and their outcome is domain.ErrRowLocked. A
	// section whose outcome is an error has changed nothing; err is everybody's. Sections may run more than once. It uses one
	// connection.
	Transact(ctx context.Context, grants []domain.Grant, lockWait time.Duration, skipLocked bool, collect domain.Collect) (
		receipt domain.Receipt, outcomes []error, err error)
	// Authority is the one in charge of a resource, AuthorityOf of a scope; domain.ErrNotFound if there is none.
	Authority(ctx context.Context, key domain.Key) (domain.Authority, error)
	AuthorityOf(ctx context.Context, scope domain.Scope) (domain.Authority, error)
	// ClaimAuthority puts a strategy in charge of a scope, SwitchResource of one resource (without a strategy: the authority
	// of its kind). The first answers with the one in charge, which need not be the one that claims.
	ClaimAuthority(ctx context.Context, scope domain.Scope, strategy, fingerprint string, by domain.Decider) (domain.Authority, error)
	SwitchResource(ctx context.Context, key domain.Key, strategy, fingerprint string) (domain.Authority, error)
	// Fenced tells whether fencing is enforced for the resource of this name, or for any of the scope.
	Fenced(ctx context.Context, scope domain.Scope) (bool, error)
	RaiseEpoch(ctx context.Context, scope domain.Scope, from int64) (domain.Authority, error)
	Reigns(ctx context.Context) ([]domain.Authority, error)  // over the two shared scopes
	OwnReigns(ctx context.Context) (map[string]int64, error) // per strategy, the resources with an authority of their own
	RecordRefusal(ctx context.Context, r domain.Refusal) error
}

// Options of a guard.
type Options struct {
	LockWait time.Duration // the longest wait for a lock
	MaxBatch int           // sections for one key that share a lock and a transaction; 1: none does
	MaxQueue int           // sections that may wait in this process for one key
	// MaxTransactions is how many transactions the queues of this process may have under way; as soon as there are more keys
	// than that, several keys share one. 0: as many as there are keys.
	MaxTransactions int
	Log             *slog.Logger
	// Observe, if set, is told what happens to locks and at the fence. It is called while locks are held, from several
	// goroutines at once, so it must not wait for anything.
	Observe func(domain.Event)
	// Span, if set, begins a span of a trace, and returns the context for what is part of it and the function that ends it.
	Span func(ctx context.Context, name string, keys []domain.Key) (context.Context, func([]domain.Grant, error))
}

// Guard implements domain.Guard over any mix of strategies.
type Guard struct {
	db       Database
	backends Backends
	lockWait time.Duration
	maxBatch int
	log      *slog.Logger
	watcher  watcher
	reigns   reigns
	queues   queues
	carriers carriers
}

var _ domain.Guard = (*Guard)(nil)

// NewGuard makes a guard. Claim tells it which strategy this instance uses for a scope.
func NewGuard(db Database, backends Backends, o Options) *Guard {
	g := &Guard{db: db, backends: backends, lockWait: o.LockWait, maxBatch: max(o.MaxBatch, 1), log: o.Log, watcher: watcher{tell: o.Observe, trace: o.Span}}
	g.carriers = carriers{guard: g, limit: o.MaxTransactions}
	g.queues = queues{guard: g, limit: max(o.MaxQueue, 1), of: map[domain.Key]*queue{}}
	return g
}

const (
	// How long giving a lock back may take. It is not bound to the request: a request that was cancelled must not leave
	// its lock to everybody else until the term ends.
	releaseTimeout = 2 * time.Second
	// What is left of the wait for PostgreSQL at the least: a section that has just got its lock must not fail because the
	// lock took all the time there was.
	minDatabaseWait = 250 * time.Millisecond
	// How long a shared transaction may take besides waiting for locks. A caller's request has a limit of its own, but it is
	// not one caller's transaction: with a server that has fallen silent it would never end, while the lock is renewed.
	transactionTimeout = 10 * time.Second
	// A section is tried once, again after an epoch was raised by somebody else, and again after a counter had gone back;
	// one with several keys, once more for each of them.
	maxTries = 3
)

// Do implements domain.Guard. Sections for one key go through its queue; those with several keys, and those that must not
// share, take their locks themselves.
func (g *Guard) Do(ctx context.Context, section domain.Section) (receipt domain.Receipt, err error) {
	keys := slices.Clone(section.Keys)
	slices.Sort(keys) // everybody takes several keys in byte order, so nobody waits in a circle
	keys = slices.Compact(keys)
	if len(keys) == 0 {
		return receipt, errors.New("locking: a section needs at least one key")
	}
	began := time.Now()
	ctx, end := g.span(ctx, "section", keys)
	defer func() { g.ended(keys, began, receipt, err); end(receipt.Grants, err) }()
	wait, cancel := context.WithTimeoutCause(ctx, g.lockWait, domain.ErrLockTimeout)
	defer cancel() // all tries share one wait
	if g.maxBatch > 1 && len(keys) == 1 && !section.Alone {
		bound, err := g.reigns.bind(wait, g, keys[0])
		if err != nil {
			return receipt, waitError(wait, err)
		}
		if bound.backend.excludes() {
			return g.queues.do(wait, keys[0], section)
		}
	}
	for range maxTries - 1 + len(keys) {
		var retry bool
		receipt, retry, err = g.once(ctx, wait, keys, section)
		if !retry {
			break
		}
	}
	return receipt, err
}

// Wait returns when every lock has been given back, or is to be given back in the background to a server that is away. No
// section may be begun any more.
func (g *Guard) Wait() { g.queues.serving.Wait() }

// once runs the section one time. wait is the part of ctx in which the locks have to come free. retry means that nothing was
// written, and that the reason is gone.
func (g *Guard) once(ctx, wait context.Context, keys []domain.Key, section domain.Section) (receipt domain.Receipt, retry bool, err error) {
	began := time.Now()
	h, err := g.hold(ctx, wait, keys)
	if err != nil {
		return receipt, false, err
	}
	defer h.end() // before Do returns, and also when the section panics: the next in line goes on at once
	waited := time.Since(began)
	deadline, _ := wait.Deadline()
	receipt, outcomes, retry, err := h.transact(h.section, max(time.Until(deadline), minDatabaseWait), false, domain.Only(section))
	receipt.LockWait += waited
	if err == nil {
		err = outcomes[0]
	}
	return receipt, retry, err
}

// hold is locks that are held, with the grants that say so.
type hold struct {
	guard    *Guard
	section  context.Context // ends when a lock is lost
	lose     context.CancelCauseFunc
	grants   []domain.Grant
	leases   map[domain.Key]*Lease
	taken    []*Lease      // in the order in which they were acquired
	handOver time.Duration // the backend's
	waited   bool          // somebody else had a lock when it was asked for
	excludes bool
	acquire  time.Duration // from asking for the first lock until the last was held
	since    time.Time     // when the last lease was acquired
	working  time.Duration // in transactions, which is how long row locks were held
}

// hold acquires the keys, which are sorted. wait is the part of ctx in which they have to come free.
func (g *Guard) hold(ctx, wait context.Context, keys []domain.Key) (h *hold, err error) {
	began := time.Now()
	h = &hold{guard: g, grants: make([]domain.Grant, 0, len(keys)), leases: make(map[domain.Key]*Lease, len(keys)), excludes: true}
	h.section, h.lose = context.WithCancelCause(ctx)
	held := false
	defer func() {
		if !held { // also when a driver has panicked: a mutex has no term after which it would be free
			h.end()
		}
	}()
	wait, cancel := context.WithCancelCause(wait)
	defer cancel(nil)
	defer context.AfterFunc(h.section, func() { cancel(context.Cause(h.section)) })() // a lease that is lost ends the wait for the next
	for _, key := range keys {
		// The epoch is read before the acquire is sent. Read after it, a holder whose lock was already taken over by the
		// next reign could carry that reign's epoch.
		bound, err := g.reigns.bind(wait, g, key)
		if err != nil {
			return h, waitError(wait, err)
		}
		grant := domain.Grant{
			Key: key, Strategy: bound.backend.Name, Epoch: bound.authority.Epoch,
			ID: domain.GrantID(uuid.New()), RowLock: bound.backend.RowLocks,
		}
		if bound.backend.Locker != nil {
			acquiring, end := g.span(wait, "lock", []domain.Key{key})
			lease, err := bound.backend.Locker.Acquire(acquiring, key, grant.ID)
			if err != nil {
				end(nil, err)
				return h, fmt.Errorf("acquiring %s: %w", key, waitError(wait, err))
			}
			h.taken = append(h.taken, lease)
			h.leases[key] = lease
			grant.Token = lease.Token
			h.waited = h.waited || lease.Waited
			end([]domain.Grant{grant}, nil)
			if lease.Extend != nil {
				go lease.keep(h.section, h.renewing(grant, lease), h.losing(grant))
			}
		}
		h.grants = append(h.grants, grant)
		h.handOver = bound.backend.HandOver
		h.excludes = h.excludes && bound.backend.excludes()
	}
	h.since = time.Now()
	h.acquire = h.since.Sub(began)
	h.began()
	held = true
	return h, nil
}

// transact runs sections under the hold. retry means that nothing was written, and that the reason is gone: under another
// hold it can succeed. ctx is the hold's section, or part of it.
func (h *hold) transact(ctx context.Context, lockWait time.Duration, skipLocked bool, collect domain.Collect) (receipt domain.Receipt, outcomes []error, retry bool, err error) {
	receipt, outcomes, err = h.guard.db.Transact(ctx, h.grants, lockWait, skipLocked, collect)
	if receipt.Grants == nil {
		receipt.Grants = h.grants
	}
	receipt.Batch = len(outcomes)
	h.took(receipt)
	var refused *domain.RefusedError
	if errors.As(err, &refused) {
		retry = h.guard.refused(h.section, refused, h.leases[refused.Refusal.Grant.Key])
	}
	return receipt, outcomes, retry, err
}

// took notes what a transaction under the hold has taken.
func (h *hold) took(receipt domain.Receipt) {
	h.working += receipt.Database
	if len(receipt.Grants) > 0 && receipt.Grants[0].RowLock {
		h.acquire += receipt.LockWait
		h.grants = receipt.Grants // with the tokens that the rows have issued
	}
}

// end gives the locks back, in reverse.
func (h *hold) end() {
	h.lose(nil) // stops the renewals
	for _, lease := range slices.Backward(h.taken) {
		h.guard.release(h.section, lease)
	}
	h.released()
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
	g.log.WarnContext(ctx, "the fence refused a write", "resource", grant.Key, "reason", e.Refusal.Reason, "strategy", grant.Strategy,
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
