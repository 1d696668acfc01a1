package lockingtest

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres/postgrestest"
)

// Queues of several keys share transactions as soon as an instance has too few of them. Whatever they share, each key's
// updates sum up; and they must be seen to share, or the test has shown nothing.
func testKeysShareTransactions(t *testing.T, w *world) {
	a, b := w.pair()
	var keys []domain.Key
	done := make([]atomic.Int64, 6)
	for range done {
		keys = append(keys, w.item(a, w.fencing()))
	}
	// A row names the transaction that wrote it. The moment would not do: two transactions can begin in the same microsecond.
	var shared atomic.Bool
	look := func() bool {
		if !shared.Load() {
			w.mu.Lock()
			defer w.mu.Unlock()
			var seen bool
			require.NoError(t, w.observer.QueryRow(t.Context(), `
				SELECT EXISTS (SELECT FROM ledger WHERE kind = 'restock' GROUP BY xmin::text HAVING count(DISTINCT resource) > 1)`).Scan(&seen))
			shared.Store(seen)
		}
		return shared.Load()
	}
	mayShare := w.instance.MaxBatch > 1
	stop := func() bool { return mayShare && look() }
	rounds := 20
	if mayShare {
		rounds = 10_000
	}
	w.crowdOn([]*node{a, b}, 12, rounds, stop, func(ctx context.Context, n *node, worker, _ int) error {
		i := worker / 2
		_, err := n.addTo(ctx, keys[i])
		if err == nil {
			done[i].Add(1)
		}
		return err
	})
	require.Equal(t, mayShare, look(), "keys have shared a transaction")
	audit, err := a.store.Audit(t.Context(), keys...)
	require.NoError(t, err)
	for i, key := range keys {
		require.Equal(t, done[i].Load(), w.stock(key))
		require.True(t, audit[i].OK(), "%+v", audit[i])
	}
}

// A row that somebody else has locked keeps the sections of its own key waiting, and nobody else's. One connection would not
// do: the one that waits has it.
func testLockedRow(t *testing.T, w *world) {
	if w.instance.PoolSize == 1 {
		w.instance.PoolSize = 2
	}
	n := w.node()
	locked := w.item(n, domain.FencingEnforced)
	stranger := postgrestest.Connect(t, w.db.OwnerURL)
	tx, err := stranger.BeginTx(t.Context(), pgx.TxOptions{})
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM fences WHERE resource = $1 FOR UPDATE`, locked)
	require.NoError(t, err)

	var group sync.WaitGroup
	ended := make(chan struct{})
	group.Go(func() {
		defer close(ended)
		_, err := n.addTo(t.Context(), locked)
		require.NoError(t, err)
	})
	w.waitUntilBlocked(ended)
	for range 10 {
		var others sync.WaitGroup
		for range 4 {
			key := w.item(n, domain.FencingEnforced)
			others.Go(func() {
				_, err := n.addTo(t.Context(), key)
				require.NoError(t, err)
			})
		}
		others.Wait()
	}
	select {
	case <-ended:
		t.Fatal("a section has written past a lock on its row")
	default:
	}
	require.NoError(t, tx.Rollback(t.Context()))
	group.Wait()
	require.EqualValues(t, 1, w.stock(locked))
}
