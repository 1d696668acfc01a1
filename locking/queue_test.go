package locking_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/locking"
)

// The queue is tested over a database and a lock that the test controls, in a bubble of synctest: "everybody waits" is a
// state that can be waited for. What it does to real locks and rows is in the conformance suite.

// database records the transactions. It lets the test look before one ends.
type database struct {
	locking.Database
	strategy   string
	begun      func()       // called in every transaction before it collects, if set
	presenting func()       // called in every transaction between its two collections, if set
	silent     bool         // transactions get no answer
	before     func() error // called in every transaction before it commits, if set; an error is the transaction's

	mu      sync.Mutex
	batches []int
	grants  []domain.GrantID
	took    time.Duration // by each transaction, as it says
}

// fake is a database of these tests.
type fake interface {
	locking.Database
	runBy(strategy string)
}

func (d *database) runBy(strategy string) { d.strategy = strategy }

func (d *database) Authority(_ context.Context, _ domain.Key) (domain.Authority, error) {
	return domain.Authority{Scope: domain.ScopeInventory, Strategy: d.strategy, Fingerprint: d.strategy, Epoch: 1}, nil
}

func (d *database) Transact(ctx context.Context, grants []domain.Grant, _ time.Duration, _ bool, collect domain.Collect) (
	domain.Receipt, []error, error,
) {
	if d.begun != nil {
		d.begun()
	}
	if ctx.Err() != nil { // no connection is taken for who has no use for it
		return domain.Receipt{}, nil, context.Cause(ctx)
	}
	sections := collect(false)
	if d.presenting != nil {
		d.presenting()
	}
	sections = append(sections, collect(true)...)
	if d.silent {
		<-ctx.Done()
		return domain.Receipt{}, make([]error, len(sections)), context.Cause(ctx)
	}
	outcomes := make([]error, len(sections))
	for i, s := range sections {
		outcomes[i] = s.Run(ctx, nil)
	}
	if ctx.Err() != nil {
		return domain.Receipt{}, outcomes, context.Cause(ctx)
	}
	d.mu.Lock()
	d.batches = append(d.batches, len(sections))
	d.grants = append(d.grants, grants[0].ID)
	d.mu.Unlock()
	if d.before != nil {
		return domain.Receipt{Database: d.took}, outcomes, d.before()
	}
	return domain.Receipt{Database: d.took}, outcomes, nil
}

func (d *database) RecordRefusal(context.Context, domain.Refusal) error { return nil }

func (d *database) RaiseEpoch(_ context.Context, scope domain.Scope, from int64) (domain.Authority, error) {
	return domain.Authority{Scope: scope, Strategy: d.strategy, Fingerprint: d.strategy, Epoch: from + 1}, nil
}

// lock is one lock for all keys, which counts how often it was taken. A wait for it can be cancelled.
type lock struct {
	free     chan struct{} // holds one value while nobody has the lock
	acquired atomic.Int32
	gone     chan struct{} // if set, tells the first holder that it has lost the lock
	waited   bool          // somebody else has it in between
}

func newLock() *lock {
	l := &lock{free: make(chan struct{}, 1)}
	l.free <- struct{}{}
	return l
}

func (l *lock) Acquire(ctx context.Context, _ domain.Key, _ domain.GrantID) (*locking.Lease, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.free:
	}
	lease := &locking.Lease{Token: 1, Waited: l.waited, Release: func(context.Context) error {
		l.free <- struct{}{}
		return nil
	}}
	if l.acquired.Add(1) == 1 && l.gone != nil {
		lease.Gone, lease.Until, lease.Term = l.gone, time.Now().Add(time.Hour), time.Hour
		lease.Extend = func(context.Context) (time.Time, error) { return time.Now().Add(time.Hour), nil }
	}
	return lease, nil
}

const (
	key     = domain.Key("item/lamp")
	patient = time.Minute
)

func newGuard(d fake, l locking.Locker, change ...func(*locking.Options, *locking.Backend)) *locking.Guard {
	options := locking.Options{LockWait: patient, MaxBatch: 100, MaxQueue: 1000, Log: slog.New(slog.DiscardHandler)}
	backend := &locking.Backend{Name: "test", Locker: l}
	for _, f := range change {
		f(&options, backend)
	}
	d.runBy(backend.Name)
	return locking.NewGuard(d, locking.Backends{backend}, options)
}

func do(g *locking.Guard, run func()) (domain.Receipt, error) {
	return g.Do(context.Background(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error {
		run()
		return nil
	}})
}

func nothing() {}

// queueUp starts n sections that wait, in this order, for a lock that is not free.
func queueUp(t *testing.T, group *sync.WaitGroup, n int, one func(i int)) {
	t.Helper()
	for i := range n {
		group.Go(func() { one(i) })
		synctest.Wait() // until it is in the queue
	}
}

// Sections that wait together run together: under one lock, in one transaction, in the order in which they came, and never
// more of them than allowed.
func TestBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l, func(o *locking.Options, b *locking.Backend) { o.MaxBatch, b.HandOver = 4, patient })
		<-l.free
		var order []int
		var group sync.WaitGroup
		queueUp(t, &group, 10, func(i int) {
			receipt, err := do(g, func() { order = append(order, i) })
			assert.NoError(t, err)
			assert.Equal(t, []int{4, 4, 4, 4, 4, 4, 4, 4, 2, 2}[i], receipt.Batch)
		})
		l.free <- struct{}{}
		group.Wait()
		g.Wait()
		assert.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, order)
		assert.Equal(t, []int{4, 4, 2}, d.batches)
		assert.EqualValues(t, 1, l.acquired.Load(), "the lock is kept while somebody waits")
		assert.Len(t, unique(d.grants), 1)
		assert.Zero(t, g.Queues(), "a queue that nobody is in is no more")
		assert.Len(t, l.free, 1, "the lock was given back")
	})
}

// Who comes while the grants are presented shares the transaction, if there is room.
func TestComingWhileItBegins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &database{}
		g := newGuard(d, newLock(), func(o *locking.Options, _ *locking.Backend) { o.MaxBatch = 3 })
		var order []int
		var group sync.WaitGroup
		one := func(i int) {
			receipt, err := do(g, func() { order = append(order, i) })
			assert.NoError(t, err)
			assert.Equal(t, []int{3, 3, 3, 1}[i], receipt.Batch)
			assert.Equal(t, []time.Duration{0, 0, 0, time.Second}[i], receipt.LockWait)
		}
		d.presenting = func() {
			d.presenting = nil
			for i := range 3 {
				group.Go(func() { one(i + 1) })
				synctest.Wait() // until it is in the queue
			}
		}
		d.before = func() error {
			time.Sleep(time.Second) // of the bubble's time: how long a batch takes, which the next one waits
			return nil
		}
		one(0)
		group.Wait()
		assert.Equal(t, []int{0, 1, 2, 3}, order)
		assert.Equal(t, []int{3, 1}, d.batches)
	})
}

func unique[T comparable](all []T) map[T]bool {
	set := map[T]bool{}
	for _, v := range all {
		set[v] = true
	}
	return set
}

// The lock is given back when the turn is over, however many wait: others may be waiting elsewhere. The turn is shorter if
// somebody was, and so is the time for which it is kept while nobody waits here.
func TestTurnEnds(t *testing.T) {
	t.Parallel()
	for waited, handOver := range map[bool]time.Duration{false: 250 * time.Millisecond, true: 500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			d, l := &database{}, newLock()
			l.waited = waited
			d.before = func() error {
				time.Sleep(4 * time.Second) // of the bubble's time: how long a batch takes; two of them are longer than a turn
				return nil
			}
			g := newGuard(d, l, func(o *locking.Options, b *locking.Backend) { o.MaxBatch, b.HandOver = 2, handOver })
			<-l.free
			var group sync.WaitGroup
			queueUp(t, &group, 7, func(int) {
				_, err := do(g, nothing)
				assert.NoError(t, err)
			})
			l.free <- struct{}{}
			group.Wait()
			assert.Equal(t, []int{2, 2, 2, 1}, d.batches)
			assert.EqualValues(t, 2, l.acquired.Load(), "two batches a turn")
			assert.Equal(t, d.grants[0], d.grants[1])
			assert.NotEqual(t, d.grants[1], d.grants[2], "a new turn is a new grant")
			began := time.Now()
			_, err := do(g, nothing)
			require.NoError(t, err)
			assert.Equal(t, 4*time.Second, time.Since(began))
			began = time.Now()
			g.Wait()
			assert.Equal(t, 250*time.Millisecond, time.Since(began), "it is kept for who comes next")
		})
	}
}

// A client that sends one request after the other finds the transaction begun. When he does not come any more it ends, and with it
// the turn; what becomes of it then is nobody's error.
func TestTransactionBeginsAhead(t *testing.T) {
	t.Parallel()
	const begins, pause, failing = 400 * time.Millisecond, time.Second, time.Second
	synctest.Test(t, func(t *testing.T) {
		// All sleeps are of the bubble's time, which passes when everybody waits.
		d, l := &database{begun: func() { time.Sleep(begins) }, took: begins}, newLock() // how long BEGIN and presentation take
		d.before = func() error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.batches[len(d.batches)-1] > 0 {
				return nil
			}
			time.Sleep(failing) // how long the server takes to refuse
			return errors.New("boom")
		}
		g := newGuard(d, l, func(_ *locking.Options, b *locking.Backend) { b.HandOver = pause })
		took := func() time.Duration {
			began := time.Now()
			receipt, err := do(g, nothing)
			require.NoError(t, err)
			assert.LessOrEqual(t, receipt.LockWait+receipt.Database, time.Since(began), "what was before the request is not its own")
			return time.Since(began)
		}
		for i, want := range []time.Duration{begins, begins, 0, 0} {
			assert.Equal(t, want, took(), "request %d", i+1)
			time.Sleep(pause / 2) // how long the client is away: for longer than BEGIN takes, and not for as long as it is waited for
		}
		assert.EqualValues(t, 1, l.acquired.Load(), "they share a turn")
		time.Sleep(pause) // the transaction that has begun ahead has waited in vain, and is about to fail
		assert.Equal(t, begins+pause+failing-3*pause/2+begins, took(), "the end of that turn, and a new one")
		assert.EqualValues(t, 2, l.acquired.Load())
		g.Wait()
		assert.Equal(t, []int{1, 1, 1, 1, 0, 1}, d.batches)
	})
}

// For several clients it would begin with the first to come alone; and others must not wait for a transaction that waits.
func TestTransactionDoesNotBeginAhead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ clients, limit int }{{2, 0}, {1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			var begun atomic.Int32
			d := &database{begun: func() { begun.Add(1) }}
			g := newGuard(d, newLock(), func(o *locking.Options, b *locking.Backend) {
				o.MaxTransactions, b.HandOver = test.limit, time.Second
			})
			d.presenting = func() { time.Sleep(time.Millisecond) } // of the bubble's time, so that the second of two comes with the first
			for range 4 {
				var group sync.WaitGroup
				queueUp(t, &group, test.clients, func(int) {
					_, err := do(g, nothing)
					assert.NoError(t, err)
				})
				group.Wait()
				time.Sleep(time.Second / 2) // of the bubble's time: how long the clients are away, half of what they are waited for
			}
			g.Wait()
			assert.EqualValues(t, 4, begun.Load())
			assert.Equal(t, slices.Repeat([]int{test.clients}, 4), d.batches)
		})
	}
}

// Each caller gets the outcome of its own section.
func TestRefusedSectionHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		<-l.free
		var group sync.WaitGroup
		queueUp(t, &group, 6, func(i int) {
			_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error {
				if i%2 == 0 {
					return domain.ErrOutOfStock
				}
				return nil
			}})
			if i%2 == 0 {
				assert.ErrorIs(t, err, domain.ErrOutOfStock)
			} else {
				assert.NoError(t, err)
			}
		})
		l.free <- struct{}{}
		group.Wait()
		assert.Equal(t, []int{6}, d.batches)
	})
}

// A transaction that fails fails for everybody, also for those whose section was refused: it was refused on the ground of
// what has not happened. When nobody knows whether it has, those who put nothing still know that of themselves.
func TestFailedTransaction(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{errors.New("boom"), domain.ErrOutcomeUnknown} {
		synctest.Test(t, func(t *testing.T) {
			d, l := &database{before: func() error { return failure }}, newLock()
			g := newGuard(d, l)
			<-l.free
			var group sync.WaitGroup
			queueUp(t, &group, 2, func(i int) {
				_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error {
					return []error{nil, domain.ErrOutOfStock}[i]
				}})
				assert.NotErrorIs(t, err, domain.ErrOutOfStock)
				if i == 1 && errors.Is(failure, domain.ErrOutcomeUnknown) {
					assert.ErrorIs(t, err, domain.ErrUnavailable)
					assert.NotErrorIs(t, err, domain.ErrOutcomeUnknown)
				} else {
					assert.ErrorIs(t, err, failure)
				}
			})
			l.free <- struct{}{}
			group.Wait()
			g.Wait()
			assert.Equal(t, []int{2}, d.batches)
		})
	}
}

// Who leaves before its section has begun is gone without a trace; who leaves afterwards is told what became of it.
func TestLeaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		<-l.free
		ctx, leave := context.WithCancel(t.Context())
		var ran [3]bool
		var errs [3]error
		var group sync.WaitGroup
		committing, commit := make(chan struct{}), make(chan struct{})
		d.before = func() error {
			close(committing)
			<-commit
			return nil
		}
		queueUp(t, &group, 3, func(i int) {
			mine := t.Context()
			if i == 1 {
				mine = ctx
			}
			_, errs[i] = g.Do(mine, domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error {
				ran[i] = true
				return nil
			}})
		})
		leave()
		synctest.Wait()
		require.ErrorIs(t, errs[1], context.Canceled)
		l.free <- struct{}{}
		<-committing
		close(commit)
		group.Wait()
		assert.Equal(t, [3]bool{true, false, true}, ran)
		assert.NoError(t, errs[0])
		assert.Equal(t, []int{2}, d.batches)
	})
}

func TestLeavingTooLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		ctx, leave := context.WithCancel(t.Context())
		d.before = func() error {
			leave()
			synctest.Wait()
			return nil
		}
		_, err := g.Do(ctx, domain.Section{Keys: []domain.Key{key}, Run: func(ctx context.Context, _ domain.Tx) error { return ctx.Err() }})
		require.NoError(t, err, "it was committed")
	})
}

// When all have left, nobody waits for the lock in their name.
func TestAllLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		<-l.free
		ctx, leave := context.WithCancel(t.Context())
		var group sync.WaitGroup
		queueUp(t, &group, 3, func(int) {
			_, err := g.Do(ctx, domain.Section{Keys: []domain.Key{key}, Run: nil})
			assert.ErrorIs(t, err, context.Canceled)
		})
		leave()
		group.Wait()
		g.Wait() // although the lock never comes free
		assert.Zero(t, g.Queues())
		assert.Empty(t, d.batches)
	})
}

// Each caller waits its own time, and no more.
func TestQueueTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		<-l.free
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				began := time.Now()
				_, err := do(g, nothing)
				assert.ErrorIs(t, err, domain.ErrLockTimeout)
				assert.Equal(t, patient, time.Since(began))
			})
			time.Sleep(patient / 4) // of the bubble's time: so that each comes, and has to go, at another moment
		}
		group.Wait()
		g.Wait()
		assert.Empty(t, d.batches)
	})
}

// A queue has an end, and says so at once. What is refused there costs nobody else anything.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l, func(o *locking.Options, _ *locking.Backend) { o.MaxQueue = 3 })
		<-l.free
		var group sync.WaitGroup
		queueUp(t, &group, 3, func(int) {
			_, err := do(g, nothing)
			assert.NoError(t, err)
		})
		_, err := do(g, nothing)
		require.ErrorIs(t, err, domain.ErrQueueFull)
		l.free <- struct{}{}
		group.Wait()
		assert.Equal(t, []int{3}, d.batches)
	})
}

// A panic is the caller's, and only his.
func TestPanicInBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		<-l.free
		var group sync.WaitGroup
		queueUp(t, &group, 3, func(i int) {
			if i == 1 {
				assert.PanicsWithValue(t, "boom", func() { _, _ = do(g, func() { panic("boom") }) })
				return
			}
			_, err := do(g, nothing)
			assert.NoError(t, err)
		})
		l.free <- struct{}{}
		group.Wait()
		assert.Equal(t, []int{3}, d.batches)
	})
}

// A panic that is no section's own is an error of everybody in the batch, has one line in the log, and harms nobody who comes
// later. It happens on a goroutine of the queue's: without care it would end the process, and these tests with it.
func TestPanicOfTheBatch(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"before the locks", "before the batch", "while answers are made"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				var once sync.Once
				d, l := &database{}, newLock()
				boom := func() { once.Do(func() { panic("boom") }) }
				var locker locking.Locker = l
				switch where {
				case "before the locks":
					locker = acquire(func(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
						lease, err := l.Acquire(ctx, key, id)
						once.Do(func() {
							l.free <- struct{}{} // as at the end of its term
							panic("boom")
						})
						return lease, err
					})
				case "before the batch":
					d.begun = boom
				default:
					d.before = func() error { boom(); return nil }
				}
				g := newGuard(d, locker, func(o *locking.Options, _ *locking.Backend) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
				<-l.free
				var group sync.WaitGroup
				queueUp(t, &group, 3, func(int) {
					_, err := do(g, nothing)
					assert.ErrorContains(t, err, "has panicked")
					assert.NotErrorIs(t, err, domain.ErrUnavailable, "that would say that nothing was written")
				})
				l.free <- struct{}{}
				group.Wait()
				g.Wait()
				assert.Equal(t, 1, strings.Count(log.String(), "stack="), log.String())
				assert.Contains(t, log.String(), "queue_test.go")
				assert.Len(t, l.free, 1, "the lock was given back")
				_, err := do(g, nothing)
				assert.NoError(t, err, "the queue goes on")
			})
		})
	}
}

// A driver that panics leaves no lock behind that was taken before: a mutex has no term after which it would be free.
func TestPanicOfADriver(t *testing.T) {
	t.Parallel()
	l := newLock()
	g := newGuard(&database{}, acquire(func(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
		if key == "item/z" {
			panic("boom")
		}
		return l.Acquire(ctx, key, id)
	}))
	section := domain.Section{Keys: []domain.Key{"item/a", "item/z"}, Run: func(context.Context, domain.Tx) error { return nil }}
	assert.PanicsWithValue(t, "boom", func() { _, _ = g.Do(t.Context(), section) })
	assert.EqualValues(t, 1, l.acquired.Load())
	assert.Len(t, l.free, 1, "the first lock was given back")
}

// acquire is a Locker.
type acquire func(context.Context, domain.Key, domain.GrantID) (*locking.Lease, error)

func (f acquire) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	return f(ctx, key, id)
}

// A lock that cannot be had is everybody's error who waits for it, and the next one tries anew.
func TestLockFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, &failing{lock: newLock(), err: make(chan error)}
		g := newGuard(d, l)
		var group sync.WaitGroup
		queueUp(t, &group, 3, func(int) {
			_, err := do(g, nothing)
			assert.ErrorIs(t, err, domain.ErrUnavailable)
		})
		l.err <- &domain.UnavailableError{Server: "Redis", Err: errors.New("boom")}
		group.Wait()
		close(l.err)
		_, err := do(g, nothing)
		require.NoError(t, err)
		assert.Equal(t, []int{1}, d.batches)
	})
}

type failing struct {
	*lock
	err chan error
}

func (f *failing) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	if err := <-f.err; err != nil {
		return nil, err
	}
	return f.lock.Acquire(ctx, key, id)
}

// Without a lock nothing is shared: a queue would make it look as if it were safe.
func TestNoLockIsNotShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &database{}
		g := newGuard(d, nil)
		inside := make(chan struct{})
		var group sync.WaitGroup
		queueUp(t, &group, 2, func(int) {
			_, err := do(g, func() { inside <- struct{}{} })
			assert.NoError(t, err)
		})
		synctest.Wait() // both are inside, or one of them never will be
		<-inside
		<-inside
		group.Wait()
		assert.Equal(t, []int{1, 1}, d.batches)
	})
}

// A section that wants to be alone, and every section where that is configured, takes its own lock.
func TestAlone(t *testing.T) {
	t.Parallel()
	for _, alone := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			d, l := &database{}, newLock()
			g := newGuard(d, l, func(o *locking.Options, _ *locking.Backend) {
				if !alone {
					o.MaxBatch = 1
				}
			})
			<-l.free
			var group sync.WaitGroup
			queueUp(t, &group, 3, func(int) {
				_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Alone: alone, Run: func(context.Context, domain.Tx) error {
					return nil
				}})
				assert.NoError(t, err)
			})
			l.free <- struct{}{}
			group.Wait()
			assert.Equal(t, []int{1, 1, 1}, d.batches)
			assert.EqualValues(t, 3, l.acquired.Load())
		})
	}
}

// Keys do not wait for one another.
func TestKeysInParallel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &database{}
		g := newGuard(d, perKey{"item/a": newLock(), "item/b": newLock()})
		inside := make(chan struct{})
		var group sync.WaitGroup
		for _, k := range []domain.Key{"item/a", "item/b"} {
			group.Go(func() {
				_, err := g.Do(t.Context(), domain.Section{Keys: []domain.Key{k}, Run: func(context.Context, domain.Tx) error {
					inside <- struct{}{}
					return nil
				}})
				assert.NoError(t, err)
			})
		}
		synctest.Wait() // both are inside, or one of them will never be
		<-inside
		<-inside
		group.Wait()
	})
}

type perKey map[domain.Key]*lock

func (p perKey) Acquire(ctx context.Context, key domain.Key, id domain.GrantID) (*locking.Lease, error) {
	return p[key].Acquire(ctx, key, id)
}

// Everybody leaves while their transaction begins, and somebody else comes in the same moment. He must not fail because they
// have left.
func TestNewcomerWhenAllHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		d := &database{}
		g := newGuard(d, newLock())
		var group sync.WaitGroup
		d.begun = sync.OnceFunc(func() {
			leave()
			synctest.Wait() // they have left
			group.Go(func() {
				_, err := do(g, nothing)
				assert.NoError(t, err)
			})
			synctest.Wait() // he is in the queue
		})
		_, err := g.Do(ctx, domain.Section{Keys: []domain.Key{key}, Run: func(context.Context, domain.Tx) error { return nil }})
		require.ErrorIs(t, err, context.Canceled)
		group.Wait()
		g.Wait()
		require.Equal(t, []int{1}, d.batches)
	})
}

// A server that has fallen silent keeps nobody for ever, and does not let the lock be renewed for ever.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{silent: true}, newLock()
		g := newGuard(d, l)
		_, err := do(g, nothing)
		require.ErrorIs(t, err, domain.ErrUnavailable)
		g.Wait()
		require.Len(t, l.free, 1, "the lock was given back")
	})
}

// A transaction that is refused is tried again under a new hold. Who has no time left does not wait for that one: he could
// not leave the queue once more.
func TestNoTimeLeftForAnotherTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		g := newGuard(d, l)
		d.before = func() error {
			time.Sleep(2 * patient) // of the bubble's time: his own is over, and his section has begun
			<-l.free                // and somebody else gets the lock as soon as it is given back
			return &domain.RefusedError{Err: domain.ErrStaleToken, Refusal: domain.Refusal{Grant: domain.Grant{Key: key, Epoch: 1}}}
		}
		l.free = make(chan struct{}, 2)
		l.free <- struct{}{}
		l.free <- struct{}{}
		began := time.Now()
		_, err := do(g, nothing)
		require.ErrorIs(t, err, domain.ErrLockTimeout)
		require.Equal(t, 2*patient, time.Since(began))
		g.Wait()
	})
}

// Who joins a batch that has tried twice already has his own tries before him.
func TestEachHasHisTries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &database{}
		g := newGuard(d, newLock())
		var group sync.WaitGroup
		transactions := 0
		d.before = func() error {
			switch transactions++; transactions {
			case 2:
				group.Go(func() {
					_, err := do(g, nothing)
					assert.NoError(t, err)
				})
				synctest.Wait() // until he is in the queue
			case 4:
				return nil
			}
			return &domain.RefusedError{Err: domain.ErrStaleToken, Refusal: domain.Refusal{Grant: domain.Grant{Key: key, Epoch: 1}}}
		}
		_, err := do(g, nothing)
		assert.ErrorIs(t, err, domain.ErrStaleToken)
		group.Wait()
		assert.Equal(t, []int{1, 1, 2, 1}, d.batches)
	})
}

// A lock that is lost between two batches is nobody's failure who was not in the first of them.
func TestLostBetweenBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &database{}, newLock()
		l.gone = make(chan struct{})
		g := newGuard(d, l, func(o *locking.Options, b *locking.Backend) { o.MaxBatch, b.HandOver = 2, patient })
		transactions := 0
		d.begun = func() {
			if transactions++; transactions == 2 {
				close(l.gone)
				synctest.Wait() // the holder knows
			}
		}
		<-l.free
		var group sync.WaitGroup
		queueUp(t, &group, 6, func(int) {
			_, err := do(g, nothing)
			assert.NoError(t, err)
		})
		l.free <- struct{}{}
		group.Wait()
		g.Wait()
		require.Equal(t, []int{2, 2, 2}, d.batches)
		require.EqualValues(t, 2, l.acquired.Load())
	})
}
