package lockingtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// crowd runs the same work from several workers on the two instances of a pair, rounds times each, or until stop says that
// it is enough.
func (w *world) crowd(workers, rounds int, stop func() bool, work func(ctx context.Context, n *node, worker, round int) error) {
	w.t.Helper()
	a, b := w.pair()
	w.crowdOn([]*node{a, b}, workers, rounds, stop, work)
}

func (w *world) crowdOn(nodes []*node, workers, rounds int, stop func() bool, work func(ctx context.Context, n *node, worker, round int) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*deadline)
	defer cancel()
	errs := make(chan error, workers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			<-start
			for round := 0; round < rounds && !stop(); round++ {
				if err := work(ctx, nodes[worker%len(nodes)], worker, round); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	close(start)
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(w.t, err)
	}
}

func never() bool { return false }

// lost tells whether fewer updates are stored than were acknowledged. The acknowledged are counted first: those that come in
// between are not lost.
func (w *world) lost(key domain.Key, done *atomic.Int64) bool {
	acknowledged := done.Load()
	return w.stock(key) < acknowledged
}

// Two holders must not be inside at the same time. Under a strategy that excludes nobody they must meet: otherwise the test
// would not have looked hard enough.
func testHoldersMeet(t *testing.T, w *world) {
	key := w.item(w.node(), w.fencing())
	var inside atomic.Int32
	var met atomic.Bool
	visit := func(ctx context.Context, n *node, _, _ int) error {
		_, err := n.do(ctx, []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
			if inside.Add(1) > 1 {
				met.Store(true)
			}
			defer inside.Add(-1)
			// A round trip, for others to come in. The item would not do, which is read before the section begins.
			if _, err := tx.Reservation(ctx, domain.ReservationPrefix+uuid.NewString()); !errors.Is(err, domain.ErrNotFound) {
				return fmt.Errorf("a reservation that there is not: %w", err)
			}
			return nil
		})
		return err
	}
	if w.row.Traits.Exclusive {
		w.crowd(6, 20, never, visit)
		require.False(t, met.Load(), "two holders were inside at once")
		return
	}
	w.crowd(6, 10_000, met.Load, visit)
	require.True(t, met.Load(), "without a lock, two holders must meet")
}

// The sum of concurrent read-modify-writes is exact. Without a lock, updates must get lost.
func testSum(t *testing.T, w *world) {
	key := w.item(w.node(), w.fencing())
	var done atomic.Int64
	lost := func() bool { return !w.row.Traits.Exclusive && w.lost(key, &done) }
	rounds := 20
	if !w.row.Traits.Exclusive {
		rounds = 10_000
	}
	w.crowd(6, rounds, lost, func(ctx context.Context, n *node, _, _ int) error {
		_, err := n.addTo(ctx, key)
		if err == nil {
			done.Add(1)
		}
		return err
	})
	if w.row.Traits.Exclusive {
		require.Equal(t, done.Load(), w.stock(key))
		audit, err := w.node().store.Audit(t.Context(), key)
		require.NoError(t, err)
		require.True(t, audit[0].OK(), "%+v", audit[0])
		return
	}
	require.Less(t, w.stock(key), done.Load(), "without a lock, updates must get lost")
}

// The plausible mistake: a mutex keeps two goroutines apart, and two processes not at all.
func testTwoProcesses(t *testing.T, w *world) {
	processes := []*node{w.node(), w.node()}
	key := w.item(processes[0], w.fencing())
	var done atomic.Int64
	lost := func() bool { return w.lost(key, &done) }
	w.crowdOn(processes, 4, 10_000, lost, func(ctx context.Context, n *node, _, _ int) error {
		_, err := n.addTo(ctx, key)
		if err == nil {
			done.Add(1)
		}
		return err
	})
	require.Less(t, w.stock(key), done.Load(), "with two processes, updates must get lost")
}

// Instances hand the lock to and fro. The term is longer than the test: a waiter that missed a release would run into the
// limit of its wait.
func testHandOver(t *testing.T, w *world) {
	key := w.item(w.node(), w.fencing())
	var waits atomic.Int32
	w.crowd(4, 25, never, func(ctx context.Context, n *node, _, _ int) error {
		began := time.Now()
		receipt, err := n.addTo(ctx, key)
		if receipt.LockWait > time.Since(began)/2 {
			waits.Add(1)
		}
		return err
	})
	require.Positive(t, waits.Load(), "nobody ever waited: the test has shown nothing")
	require.EqualValues(t, 100, w.stock(key))
}

func testErrorInSection(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, w.fencing())
	boom := errors.New("boom")
	_, err := n.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
		if err := add(ctx, tx, key); err != nil {
			return err
		}
		return boom
	})
	require.ErrorIs(t, err, boom)
	require.EqualValues(t, 0, w.stock(key))
	w.canEnter(n, key)
	require.EqualValues(t, 1, w.stock(key))
}

func testPanicInSection(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, w.fencing())
	defer func() {
		for _, e := range n.watch.of(domain.EventSection) {
			require.Error(t, e.Err, "a section that panicked has not committed")
		}
	}()
	require.PanicsWithValue(t, "boom", func() {
		_, _ = n.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
			if err := add(ctx, tx, key); err != nil {
				return err
			}
			panic("boom")
		})
	})
	require.EqualValues(t, 0, w.stock(key))
	w.canEnter(n, key)
	require.EqualValues(t, 1, w.stock(key))
}

// The answer that is kept for retries is made inside the transaction. If that fails, there is neither.
func testPanicInAnswer(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, w.fencing())
	do := func(encode func(any, error) domain.Answer) (err error) {
		defer func() {
			if v := recover(); v != nil { // on the caller's own goroutine
				err = fmt.Errorf("panic: %v", v)
			}
		}()
		_, err = n.Do(t.Context(), domain.Section{
			Keys: []domain.Key{key}, Result: func() any { return nil },
			Once: &domain.Once{Caller: "c", Key: "the-only-key", Encode: encode},
			Run:  func(ctx context.Context, tx domain.Tx) error { return add(ctx, tx, key) },
		})
		return err
	}
	require.Error(t, do(func(any, error) domain.Answer { panic("boom") }))
	require.EqualValues(t, 0, w.stock(key))
	require.NoError(t, do(func(any, error) domain.Answer { return domain.Answer{Status: 201} }))
	require.EqualValues(t, 1, w.stock(key))
}

// Everybody names several keys in an order of his own, some twice.
func testManyKeys(t *testing.T, w *world) {
	n := w.node()
	keys := []domain.Key{w.item(n, w.fencing()), w.item(n, w.fencing()), w.item(n, w.fencing())}
	var touched [3]atomic.Int64
	w.crowd(6, 12, never, func(ctx context.Context, n *node, worker, round int) error {
		pick := rand.Perm(3)[:2+rand.IntN(2)]
		var mine []domain.Key
		for _, i := range pick {
			mine = append(mine, keys[i])
		}
		_, err := n.do(ctx, append(mine, mine[0]), func(ctx context.Context, tx domain.Tx) error {
			for _, key := range mine {
				if err := add(ctx, tx, key); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			for _, i := range pick {
				touched[i].Add(1)
			}
		}
		return err
	})
	if !w.row.Traits.Exclusive {
		return // it did not deadlock; that updates were lost is shown elsewhere
	}
	for i := range keys {
		require.Equal(t, touched[i].Load(), w.stock(keys[i]))
	}
}

// waitsInVain has n wait for keys that are not all free, for a while.
func (w *world) waitsInVain(n *node, keys ...domain.Key) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := n.addTo(ctx, keys...)
	require.True(w.t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, domain.ErrLockTimeout), "%v", err)
}

// Of two keys the second cannot be had: the first must not stay behind.
func testPartialAcquire(t *testing.T, w *world) {
	holder, other := w.pair()
	first, second := w.item(holder, w.fencing()), w.item(holder, w.fencing())
	if second < first {
		first, second = second, first
	}
	_, err := holder.do(t.Context(), []domain.Key{second}, func(context.Context, domain.Tx) error {
		w.waitsInVain(other, second, first)
		w.canEnter(holder, first)
		return nil
	})
	require.NoError(t, err)
	require.EqualValues(t, 1, w.stock(first))
	require.EqualValues(t, 0, w.stock(second))
}
