package locking_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"fencepost/domain"
	"fencepost/locking"
)

// sharing is a database that records who has shared a transaction.
type sharing struct {
	database
	// fate says how a transaction ends, if set: what its sections come to, and the error of all of them.
	fate func(ctx context.Context, keys []domain.Key, skipLocked bool) (locked domain.Key, err error)

	// locked has its row locked by somebody else for good.
	locked domain.Key

	mu        sync.Mutex
	committed [][]domain.Key
	refusals  int
}

func (d *sharing) Transact(ctx context.Context, grants []domain.Grant, _ time.Duration, skipLocked bool, collect domain.Collect) (
	domain.Receipt, []error, error,
) {
	var keys []domain.Key
	for _, g := range grants {
		keys = append(keys, g.Key)
	}
	if d.before != nil {
		if err := d.before(); err != nil && !skipLocked {
			return domain.Receipt{}, nil, err
		}
	}
	if ctx.Err() != nil { // no connection is taken for who has no use for it
		return domain.Receipt{}, nil, context.Cause(ctx)
	}
	var sections []domain.Section
	if !grants[0].RowLock {
		sections = collect(false)
	}
	if keys[0] == d.locked && !skipLocked {
		<-ctx.Done()
		return domain.Receipt{}, make([]error, len(sections)), context.Cause(ctx)
	}
	if d.presenting != nil {
		d.presenting()
	}
	sections = append(sections, collect(true)...)
	outcomes := make([]error, len(sections))
	locked := d.locked
	var err error
	if d.fate != nil {
		locked, err = d.fate(ctx, keys, skipLocked)
	}
	for i, s := range sections {
		if s.Keys[0] == locked {
			outcomes[i] = domain.ErrRowLocked
			continue
		}
		outcomes[i] = s.Run(ctx, nil)
	}
	if !slices.ContainsFunc(outcomes, func(err error) bool { return err == nil }) {
		return domain.Receipt{Grants: grants}, outcomes, err
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		d.mu.Lock()
		d.committed = append(d.committed, slices.DeleteFunc(keys, func(key domain.Key) bool { return key == locked }))
		d.mu.Unlock()
	}
	return domain.Receipt{Grants: grants}, outcomes, err
}

func (d *sharing) RecordRefusal(context.Context, domain.Refusal) error {
	d.refusals++
	return nil
}

// locks is a lock for each key. That of the key gone is lost as soon as lose is closed.
type locks struct {
	gone domain.Key
	lose chan struct{}
}

func (l *locks) Acquire(_ context.Context, key domain.Key, _ domain.GrantID) (*locking.Lease, error) {
	lease := &locking.Lease{Token: 1, Release: func(context.Context) error { return nil }}
	if key == l.gone {
		lease.Gone, lease.Until, lease.Term = l.lose, time.Now().Add(time.Hour), time.Hour
		lease.Extend = func(context.Context) (time.Time, error) { return time.Time{}, domain.ErrLockLost }
	}
	return lease, nil
}

// share has sections for the keys wait for the only transaction, which a section for another key has, and then lets that one
// end. It returns what the sections came to.
func share(t *testing.T, d *sharing, l *locks, keys ...domain.Key) map[domain.Key]error {
	t.Helper()
	g := newGuard(d, l, func(o *locking.Options, _ *locking.Backend) { o.MaxTransactions = 1 })
	begun, end := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{"item/first"}, Run: func(context.Context, domain.Tx) error {
			close(begun)
			<-end
			return nil
		}})
		assert.NoError(t, err)
	})
	<-begun
	var mu sync.Mutex
	outcomes := map[domain.Key]error{}
	for _, key := range keys {
		group.Go(func() {
			receipt, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error {
				if key == "item/empty" {
					return domain.ErrOutOfStock
				}
				return nil
			}})
			if err == nil {
				assert.Equal(t, key, receipt.Grants[0].Key, "the receipt is that of its own key")
				assert.Len(t, receipt.Grants, 1)
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[key] = err
		})
	}
	synctest.Wait() // until they wait for the transaction
	close(end)
	group.Wait()
	g.Wait()
	return outcomes
}

// occupied is a guard whose only transaction a section for item/first has until end is closed, and do runs a section under it.
func occupied(t *testing.T, d *sharing) (g *locking.Guard, do func(context.Context, domain.Key, func()) error, end chan struct{}) {
	t.Helper()
	g = newGuard(d, &locks{}, func(o *locking.Options, _ *locking.Backend) { o.MaxTransactions = 1 })
	do = func(ctx context.Context, key domain.Key, run func()) error {
		_, err := g.Do(ctx, domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error { run(); return nil }})
		return err
	}
	end = make(chan struct{})
	go func() { assert.NoError(t, do(t.Context(), "item/first", func() { <-end })) }()
	synctest.Wait() // until it has the transaction
	return g, do, end
}

// Keys that wait for the same transaction have it together, in byte order, and each gets its own outcome.
func TestKeysShareATransaction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		outcomes := share(t, d, &locks{}, "item/c", "item/empty", "item/a", "item/b")
		assert.Equal(t, [][]domain.Key{{"item/first"}, {"item/a", "item/b", "item/c", "item/empty"}}, d.committed)
		assert.ErrorIs(t, outcomes["item/empty"], domain.ErrOutOfStock)
		delete(outcomes, "item/empty")
		assert.Equal(t, map[domain.Key]error{"item/a": nil, "item/b": nil, "item/c": nil}, outcomes)
	})
}

// A key whose grant the fence refuses fails by itself; the others have been rolled back with it, and go on alone.
func TestARefusedKeyHarmsNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		d.fate = func(_ context.Context, keys []domain.Key, _ bool) (domain.Key, error) {
			if slices.Contains(keys, "item/stale") {
				refusal := domain.Refusal{Grant: domain.Grant{Key: "item/stale"}, Reason: "superseded"}
				return "", &domain.RefusedError{Refusal: refusal, Err: errors.New("always")}
			}
			return "", nil
		}
		outcomes := share(t, d, &locks{}, "item/a", "item/stale", "item/z")
		var refused *domain.RefusedError
		assert.ErrorAs(t, outcomes["item/stale"], &refused)
		assert.NoError(t, outcomes["item/a"])
		assert.NoError(t, outcomes["item/z"])
		assert.ElementsMatch(t, [][]domain.Key{{"item/first"}, {"item/a"}, {"item/z"}}, d.committed)
		assert.Equal(t, 1, d.refusals, "it is recorded once, and not for the company as well")
	})
}

// A key whose row somebody else has locked waits for it alone, and keeps nobody waiting with whom it has shared a transaction.
func TestALockedRowKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		d.fate = func(_ context.Context, keys []domain.Key, skipLocked bool) (domain.Key, error) {
			if skipLocked && slices.Contains(keys, "item/locked") {
				return "item/locked", nil
			}
			return "", nil
		}
		outcomes := share(t, d, &locks{}, "item/a", "item/locked", "item/z")
		assert.Equal(t, map[domain.Key]error{"item/a": nil, "item/locked": nil, "item/z": nil}, outcomes)
		assert.Equal(t, [][]domain.Key{{"item/first"}, {"item/a", "item/z"}, {"item/locked"}}, d.committed)
	})
}

// A key that has a transaction to itself waits for its row in it, and needs no other. But not for long: then another key may
// have one.
func TestARowIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		unlocked := make(chan struct{})
		d.fate = func(_ context.Context, keys []domain.Key, skipLocked bool) (domain.Key, error) {
			assert.Equal(t, len(keys) > 1, skipLocked, keys)
			return "", nil
		}
		d.presenting = func() { d.presenting = nil; <-unlocked }
		g := newGuard(d, nil, func(o *locking.Options, b *locking.Backend) { o.MaxTransactions, b.Locker, b.RowLocks = 1, nil, true })
		do := func(key domain.Key) {
			_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error { return nil }})
			assert.NoError(t, err)
		}
		var group sync.WaitGroup
		group.Go(func() { do("item/locked") })
		synctest.Wait() // until it waits for the row
		began := time.Now()
		do("item/a")
		assert.Less(t, time.Since(began), time.Second, "another key waited for the row that is locked")
		assert.Positive(t, time.Since(began), "the transaction that waits for a row did not count")
		close(unlocked)
		group.Wait()
		g.Wait()
		assert.Equal(t, [][]domain.Key{{"item/a"}, {"item/locked"}}, d.committed)
	})
}

// Who waits for a row that somebody else has locked can leave: it was taken into a carrier in vain, and has not begun. Meanwhile
// the carrier is free for others.
func TestLeavingALockedRow(t *testing.T) {
	t.Parallel()
	t.Run("with a transaction to itself", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			d := &sharing{locked: "item/locked"}
			g := newGuard(d, &locks{}, func(o *locking.Options, _ *locking.Backend) { o.MaxTransactions = 1 })
			ctx, leave := context.WithCancel(t.Context())
			left := make(chan error, 1)
			go func() {
				_, err := g.Do(ctx, domain.Section{Keys: []domain.Key{"item/locked"}, Run: func(context.Context, domain.Tx) error {
					t.Error("it has run without its row")
					return nil
				}})
				left <- err
			}()
			synctest.Wait() // until it waits for the row
			began := time.Now()
			_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{"item/a"}, Run: func(context.Context, domain.Tx) error { return nil }})
			assert.NoError(t, err)
			leave()
			assert.ErrorIs(t, <-left, context.Canceled)
			assert.Zero(t, time.Since(began))
			g.Wait()
		})
	})
	t.Run("after company", testLeavingALockedRow)
}

func testLeavingALockedRow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{locked: "item/locked"}
		g, do, end := occupied(t, d)
		var group sync.WaitGroup
		ctx, leave := context.WithCancel(t.Context())
		group.Go(func() {
			assert.ErrorIs(t, do(ctx, "item/locked", func() { t.Error("it has run without its row") }), context.Canceled)
		})
		group.Go(func() { assert.NoError(t, do(t.Context(), "item/a", func() {})) })
		synctest.Wait() // until both wait for a transaction
		close(end)
		synctest.Wait() // until it waits for the row
		assert.Equal(t, [][]domain.Key{{"item/first"}, {"item/a"}}, d.committed)
		leave()
		group.Wait()
		g.Wait() // nobody is left who would wait for the row
	})
}

// A lock that is lost while its key shares a transaction ends the transaction, and only its own section fails.
func TestALostLockHarmsNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &sharing{}, &locks{gone: "item/lost", lose: make(chan struct{})}
		begun := 0
		d.fate = func(ctx context.Context, keys []domain.Key, _ bool) (domain.Key, error) {
			if slices.Contains(keys, "item/lost") {
				if begun++; begun == 1 {
					close(l.lose)
				}
				<-ctx.Done() // the loss has arrived
			}
			return "", nil
		}
		outcomes := share(t, d, l, "item/a", "item/lost", "item/z")
		assert.Equal(t, 1, begun, "who has begun with the lock does not begin again without it")
		assert.ErrorIs(t, outcomes["item/lost"], domain.ErrLockLost)
		assert.NoError(t, outcomes["item/a"])
		assert.NoError(t, outcomes["item/z"])
	})
}

// A key whose callers have left while it waits for a carrier is not on it: those with whom it would have shared it go together.
func TestALeftKeyHarmsNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		g, do, end := occupied(t, d)
		var group sync.WaitGroup
		ctx, leave := context.WithCancel(t.Context())
		group.Go(func() {
			assert.ErrorIs(t, do(ctx, "item/left", func() { t.Error("it has run although its caller had left") }), context.Canceled)
		})
		synctest.Wait() // until it is the first that waits for a transaction
		group.Go(func() { assert.NoError(t, do(t.Context(), "item/a", func() {})) })
		group.Go(func() { assert.NoError(t, do(t.Context(), "item/z", func() {})) })
		synctest.Wait()
		leave()
		synctest.Wait()
		began := time.Now()
		group.Go(func() { assert.NoError(t, do(t.Context(), "item/left", func() {})) }) // another caller is not in its place
		synctest.Wait()
		close(end)
		group.Wait()
		g.Wait()
		assert.Zero(t, time.Since(began))
		assert.Equal(t, [][]domain.Key{{"item/first"}, {"item/a", "item/left", "item/z"}}, d.committed)
	})
}

// A key whose strategy was changed to one without a lock while its caller waited does not wait for a transaction either, and
// shares none.
func TestNoLockIsNotCarried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		var backend *locking.Backend
		g := newGuard(d, nil, func(o *locking.Options, b *locking.Backend) {
			o.MaxTransactions, backend = 1, b
			b.Locker = acquire(func(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
				if key == "item/changed" {
					backend.Locker = nil
				}
				return (&locks{}).Acquire(ctx, key, id)
			})
		})
		end := make(chan struct{})
		do := func(key domain.Key, run func()) {
			_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error { run(); return nil }})
			assert.NoError(t, err)
		}
		var group sync.WaitGroup
		group.Go(func() { do("item/first", func() { <-end }) })
		synctest.Wait() // until it has the only transaction
		do("item/changed", func() {})
		close(end)
		group.Wait()
		assert.Equal(t, [][]domain.Key{{"item/changed"}, {"item/first"}}, d.committed)
	})
}

// A key that was on a carrier in vain, because its row was locked, has not run, whatever became of the transaction.
func TestALockedKeyKnowsItsOutcome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		d.fate = func(_ context.Context, keys []domain.Key, skipLocked bool) (domain.Key, error) {
			if skipLocked && len(keys) > 1 {
				return "item/locked", domain.ErrOutcomeUnknown
			}
			return "", nil
		}
		outcomes := share(t, d, &locks{}, "item/a", "item/locked")
		assert.ErrorIs(t, outcomes["item/a"], domain.ErrOutcomeUnknown)
		assert.NoError(t, outcomes["item/locked"])
	})
}

// Who goes on alone has its callers already. They get an answer also when that transaction does not even begin.
func TestAloneWithoutATransaction(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		d.before = func() error {
			if len(d.committed) == 0 {
				return nil // it is the first
			}
			return domain.ErrLockLost
		}
		d.fate = func(_ context.Context, keys []domain.Key, _ bool) (domain.Key, error) {
			if keys[0] == "item/first" {
				return "", nil
			}
			return "", errors.New("not everybody's")
		}
		outcomes := share(t, d, &locks{}, "item/a", "item/b")
		assert.ErrorIs(t, outcomes["item/a"], domain.ErrLockLost)
		assert.ErrorIs(t, outcomes["item/b"], domain.ErrLockLost)
	})
}

// A database that is gone, or a COMMIT of which nobody knows, is everybody's: to try again alone would keep all of them waiting,
// or write twice.
func TestEverybodysError(t *testing.T) {
	t.Parallel()
	for _, fatal := range []error{&domain.UnavailableError{Server: "PostgreSQL", Err: errors.New("gone")}, domain.ErrOutcomeUnknown} {
		synctest.Test(t, func(t *testing.T) {
			d := &sharing{}
			tries := 0
			d.fate = func(_ context.Context, keys []domain.Key, _ bool) (domain.Key, error) {
				if keys[0] == "item/first" {
					return "", nil
				}
				tries++
				return "", fatal
			}
			outcomes := share(t, d, &locks{}, "item/a", "item/b")
			assert.ErrorIs(t, outcomes["item/a"], fatal)
			assert.ErrorIs(t, outcomes["item/b"], fatal)
			assert.Equal(t, 1, tries)
		})
	}
}

// After a panic nobody knows what became of the transaction, and each of its callers is told so. The next one is not harmed.
func TestAPanicIsEverybodys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &sharing{}
		d.fate = func(_ context.Context, keys []domain.Key, _ bool) (domain.Key, error) {
			if len(keys) > 1 {
				panic("a mistake")
			}
			return "", nil
		}
		outcomes := share(t, d, &locks{}, "item/a", "item/b")
		assert.ErrorContains(t, outcomes["item/a"], "panicked")
		assert.ErrorContains(t, outcomes["item/b"], "panicked")
		assert.Equal(t, map[domain.Key]error{"item/c": nil}, share(t, d, &locks{}, "item/c"))
	})
}
