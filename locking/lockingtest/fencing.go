package lockingtest

import (
	"context"
	"runtime"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/locking"
)

func testTokensRise(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, domain.FencingEnforced)
	last := domain.Token(0)
	rises := func(n *node, after string) {
		t.Helper()
		receipt, err := n.addTo(t.Context(), key)
		require.NoError(t, err)
		require.Greater(t, receipt.Grants[0].Token, last, "after %s", after)
		require.EqualValues(t, 1, receipt.Grants[0].Epoch)
		last = receipt.Grants[0].Token
		n.Wait() // until the lock is released: sections that come before that share its grant
	}
	rises(n, "nothing")
	rises(n, "a release")
	rises(w.node(), "a new process")
}

func testTokensRiseOverExpiry(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, domain.FencingEnforced)
	lease, err := n.backend.Locker.Acquire(t.Context(), key, newGrantID())
	require.NoError(t, err)
	w.breakLock(n, key)
	receipt, err := n.addTo(t.Context(), key)
	require.NoError(t, err)
	require.Greater(t, receipt.Grants[0].Token, lease.Token)
}

func newGrantID() domain.GrantID { return domain.GrantID(uuid.New()) }

// A section whose lock is gone ends early, says why, and has written nothing.
func testBrokenLease(t *testing.T, w *world) {
	w.config.LeaseTTL = shortTerm
	n := w.node()
	key := w.item(n, w.fencing())
	_, err := n.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
		require.NoError(t, add(ctx, tx, key))
		w.breakLock(n, key)
		w.await("the section is told", ctx.Done())
		require.ErrorIs(t, context.Cause(ctx), domain.ErrLockLost)
		return nil
	})
	require.ErrorIs(t, err, domain.ErrLockLost)
	require.EqualValues(t, 0, w.stock(key))
	lost := n.watch.of(domain.EventLost)
	require.Len(t, lost, 1)
	require.Equal(t, key, lost[0].Grants[0].Key)
	w.canEnter(n, key)
}

// A row lock lives as long as its connection.
func testBrokenConnection(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, w.fencing())
	service := postgresConnection(t, w)
	_, err := n.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
		require.NoError(t, add(ctx, tx, key))
		_, err := service.Exec(ctx, `
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			 WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()`)
		require.NoError(t, err)
		return nil
	})
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.EqualValues(t, 0, w.stock(key))
	w.canEnter(n, key)
}

func postgresConnection(t *testing.T, w *world) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.db.ServiceURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// A holder pauses after its acquire and wakes when the next one has sold. The fence refuses it; with the fence off, its
// late write lands.
func testPausedBeforeTransaction(t *testing.T, w *world) {
	for _, fencing := range []domain.Fencing{domain.FencingEnforced, domain.FencingOff} {
		paused, pause := w.pausingNode()
		next := w.node()
		key := w.item(next, fencing)
		done, pausedErr := async(func() error {
			_, err := paused.addTo(t.Context(), key)
			return err
		})
		w.await("the first holder has the lock", pause.acquired)
		w.breakLock(paused, key)
		receipt, err := next.addTo(t.Context(), key)
		require.NoError(t, err)
		close(pause.resume)
		w.await("the paused holder is through", done)

		if fencing == domain.FencingOff {
			require.NoError(t, *pausedErr, "without the fence, nothing stops the late write")
			require.Empty(t, paused.watch.of(domain.EventRefused))
			require.EqualValues(t, 2, w.stock(key))
			continue
		}
		require.ErrorIs(t, *pausedErr, domain.ErrStaleToken)
		var refused *domain.RefusedError
		require.ErrorAs(t, *pausedErr, &refused)
		require.Equal(t, receipt.Grants[0].Token, refused.Refusal.CurrentToken)
		require.Less(t, refused.Refusal.Grant.Token, refused.Refusal.CurrentToken)
		require.EqualValues(t, 1, w.stock(key))

		audit, err := next.store.Audit(t.Context(), key)
		require.NoError(t, err)
		require.EqualValues(t, 1, audit[0].Refused, "the refusal is recorded")
		events := paused.watch.of(domain.EventRefused)
		require.Len(t, events, 1, "and told")
		require.Equal(t, &refused.Refusal, events[0].Refusal)
	}
}

// A holder pauses between its read and its write. It has presented, so the next holder waits for its transaction; with the
// fence off, the next one reads what the paused one is about to overwrite, and an update is lost.
func testPausedInTransaction(t *testing.T, w *world) {
	for _, fencing := range []domain.Fencing{domain.FencingEnforced, domain.FencingOff} {
		paused, next := w.node(), w.node()
		key := w.item(next, fencing)
		inside, resume := make(chan struct{}), make(chan struct{})
		pausedDone, pausedErr := async(func() error {
			_, err := paused.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
				item, err := tx.Item(ctx, key.Name())
				if err != nil {
					return err
				}
				close(inside)
				<-resume
				item.OnHand++
				tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
				return nil
			})
			return err
		})
		w.await("the first holder has read", inside)
		w.breakLock(paused, key)
		nextDone, nextErr := async(func() error {
			_, err := next.addTo(t.Context(), key)
			return err
		})
		w.waitUntilBlocked(nextDone)
		close(resume)
		w.await("the first holder is through", pausedDone)
		w.await("the next holder is through", nextDone)
		require.NoError(t, *pausedErr)
		require.NoError(t, *nextErr)
		if fencing == domain.FencingOff {
			require.EqualValues(t, 1, w.stock(key), "without the fence, an update must be lost")
			continue
		}
		require.EqualValues(t, 2, w.stock(key))
	}
}

// sell runs a section with a slow step between its read and its write.
func (n *node) sell(ctx context.Context, key domain.Key, step func(context.Context) error) error {
	_, err := n.Do(ctx, domain.Section{Keys: []domain.Key{key}, Alone: true, Run: func(ctx context.Context, tx domain.Tx) error {
		item, err := tx.Item(ctx, key.Name())
		if err != nil {
			return err
		}
		if err := tx.Slow(ctx, step); err != nil {
			return err
		}
		item.OnHand++
		tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
		return nil
	}})
	return err
}

// A holder pauses in a slow step, which two transactions of the same grant surround. The second one presents again and is
// refused; with the fence off, it overwrites what the next holder did.
func testPausedInSlowStep(t *testing.T, w *world) {
	for _, fencing := range []domain.Fencing{domain.FencingEnforced, domain.FencingOff} {
		paused, next := w.node(), w.node()
		key := w.item(next, fencing)
		inside, resume := make(chan struct{}), make(chan struct{})
		done, pausedErr := async(func() error {
			return paused.sell(t.Context(), key, func(context.Context) error {
				close(inside)
				<-resume
				return nil
			})
		})
		w.await("the first holder is in its slow step", inside)
		w.breakLock(paused, key)
		_, err := next.addTo(t.Context(), key)
		require.NoError(t, err, "nothing holds the next one up")
		close(resume)
		w.await("the paused holder is through", done)
		if fencing == domain.FencingOff {
			require.NoError(t, *pausedErr)
			require.EqualValues(t, 1, w.stock(key), "without the fence, an update must be lost")
			continue
		}
		require.ErrorIs(t, *pausedErr, domain.ErrStaleToken)
		require.EqualValues(t, 1, w.stock(key))
		audit, err := next.store.Audit(t.Context(), key)
		require.NoError(t, err)
		require.EqualValues(t, 1, audit[0].Refused, "the refusal is recorded")
	}
}

// Sections with a slow step are as exclusive as others.
func testSlowStep(t *testing.T, w *world) {
	key := w.item(w.node(), w.fencing())
	w.crowd(4, 10, never, func(ctx context.Context, n *node, _, _ int) error {
		return n.sell(ctx, key, func(context.Context) error {
			runtime.Gosched()
			return nil
		})
	})
	require.EqualValues(t, 40, w.stock(key))
}

// The paused holder wakes while its successor is between read and write. This is what presenting first is for: where the
// grant is presented at the write only, the same interleaving loses an update.
func testWakeBetweenReadAndWrite(t *testing.T, w *world) {
	for _, late := range []bool{false, true} {
		var change []func(*locking.Backend, *locking.Database)
		if late {
			change = append(change, presentLate(w))
		}
		paused, pause := w.pausingNode(change...)
		next := w.node(change...)
		key := w.item(next, domain.FencingEnforced)

		pausedDone, pausedErr := async(func() error {
			_, err := paused.addTo(t.Context(), key)
			return err
		})
		w.await("the first holder has the lock", pause.acquired)
		w.breakLock(paused, key)

		read, write := make(chan struct{}), make(chan struct{})
		nextDone, nextErr := async(func() error {
			_, err := next.do(t.Context(), []domain.Key{key}, func(ctx context.Context, tx domain.Tx) error {
				item, err := tx.Item(ctx, key.Name())
				if err != nil {
					return err
				}
				close(read)
				<-write
				item.OnHand++
				tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
				return nil
			})
			return err
		})
		w.await("the successor has read", read)
		close(pause.resume)
		w.waitUntilBlocked(pausedDone) // the woken holder is stopped by the fence, or it is through
		close(write)
		w.await("the successor is through", nextDone)
		w.await("the paused holder is through", pausedDone)
		require.NoError(t, *nextErr)

		if late {
			require.NoError(t, *pausedErr, "at its write the stale token still is the newest")
			require.EqualValues(t, 1, w.stock(key), "a check at the write only must lose an update")
			continue
		}
		require.ErrorIs(t, *pausedErr, domain.ErrStaleToken)
		require.EqualValues(t, 1, w.stock(key))
	}
}

// Releasing or extending a lock that is lost is an error, brings nothing back, and leaves the next holder alone.
func testLostLease(t *testing.T, w *world) {
	a, b := w.node(), w.node()
	key := w.item(a, w.fencing())
	lost, err := a.backend.Locker.Acquire(t.Context(), key, newGrantID())
	require.NoError(t, err)
	w.breakLock(a, key)
	_, err = lost.Extend(t.Context())
	require.ErrorIs(t, err, domain.ErrLockLost)

	held, err := b.backend.Locker.Acquire(t.Context(), key, newGrantID())
	require.NoError(t, err, "the extension must not have brought the lock back")
	require.Greater(t, held.Token, lost.Token)
	require.ErrorIs(t, lost.Release(t.Context()), domain.ErrLockLost)
	_, err = lost.Extend(t.Context())
	require.ErrorIs(t, err, domain.ErrLockLost)
	_, err = held.Extend(t.Context())
	require.NoError(t, err, "the next holder still has its lock")
	require.NoError(t, held.Release(t.Context()))
	w.canEnter(a, key)
}

// A holder that is gone without a release keeps others waiting until its term ends, and no longer.
func testVanishedHolder(t *testing.T, w *world) {
	w.config.LeaseTTL = shortTerm
	a, b := w.node(), w.node()
	key := w.item(a, w.fencing())
	_, err := a.backend.Locker.Acquire(t.Context(), key, newGrantID())
	require.NoError(t, err)
	_, err = b.addTo(t.Context(), key)
	require.NoError(t, err)
}

// What issues no tokens cannot write where they are demanded, not even with a lock that works.
func testUnfenced(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, domain.FencingEnforced)
	_, err := n.addTo(t.Context(), key)
	require.ErrorIs(t, err, domain.ErrFencingRequired)
	require.EqualValues(t, 0, w.stock(key))
}

// An authority whose tokens start again does not stop the work: its epoch is raised.
func testHealing(t *testing.T, w *world) {
	n, other := w.node(), w.node()
	key := w.item(n, domain.FencingEnforced)
	_, err := other.addTo(t.Context(), key)
	require.NoError(t, err)
	// For the lock servers this is as if they had forgotten all they had counted: the fence is far ahead of them.
	service := postgresConnection(t, w)
	_, err = service.Exec(t.Context(), `SELECT present($1, $2, 1, 9223372036854775807, gen_random_uuid())`, key, w.row.Name)
	require.NoError(t, err)

	receipt, err := n.addTo(t.Context(), key)
	require.NoError(t, err)
	require.EqualValues(t, 2, receipt.Grants[0].Epoch)
	receipt, err = other.addTo(t.Context(), key)
	require.NoError(t, err, "an instance that still knows the old epoch learns the new one")
	require.EqualValues(t, 2, receipt.Grants[0].Epoch)
	require.EqualValues(t, 3, w.stock(key))
	raised := n.watch.of(domain.EventRaised)
	require.Len(t, raised, 1)
	require.EqualValues(t, 2, raised[0].Authority.Epoch)
	sections := n.watch.of(domain.EventSection)
	require.Len(t, sections, 1, "the caller has asked once")
	require.NoError(t, sections[0].Err)
	require.Equal(t, receipt.Grants[0].Strategy, sections[0].Grants[0].Strategy)
	require.NotZero(t, sections[0].Grants[0].Token)
	n.Wait() // the answer comes before the release
	released := n.watch.of(domain.EventReleased)
	require.Len(t, released, 2, "each try has held the lock")
	began := n.watch.of(domain.EventBegan)
	require.Len(t, began, 2, "and has said so at once")
	for i := range began {
		require.Equal(t, released[i].Grants[0].ID, began[i].Grants[0].ID)
		if !began[i].Grants[0].RowLock {
			require.Equal(t, released[i].Grants, began[i].Grants)
			require.Positive(t, began[i].Term)
		}
	}
	require.Equal(t, sections[0].Grants, released[1].Grants)
	require.Positive(t, released[1].Hold)
}

// When another strategy takes over a scope, instances of the old one cannot write any more, and say so.
func testSuperseded(t *testing.T, w *world) {
	n := w.node()
	key := w.item(n, domain.FencingEnforced)
	_, err := n.addTo(t.Context(), key)
	require.NoError(t, err)
	require.NoError(t, n.Ready(t.Context()))

	_, err = n.store.ClaimAuthority(t.Context(), domain.ScopeInventory, "another", "servers", domain.ByConfiguration)
	require.NoError(t, err)
	_, err = n.addTo(t.Context(), key)
	require.ErrorIs(t, err, domain.ErrSuperseded)
	_, err = n.addTo(t.Context(), key)
	require.ErrorIs(t, err, domain.ErrSuperseded, "and it stays so")
	require.ErrorIs(t, n.Ready(t.Context()), domain.ErrSuperseded)
	superseded := n.watch.of(domain.EventSuperseded)
	require.Len(t, superseded, 1, "however often it is met")
	require.Equal(t, "another", superseded[0].Authority.Strategy)
	require.EqualValues(t, 1, w.stock(key))

	require.NoError(t, n.Claim(t.Context(), map[domain.Scope]string{domain.ScopeInventory: w.row.Name}))
	receipt, err := n.addTo(t.Context(), key)
	require.NoError(t, err, "it may take the scope back")
	require.EqualValues(t, 3, receipt.Grants[0].Epoch)
	takenOver := n.watch.of(domain.EventTakenOver)
	require.EqualValues(t, 3, takenOver[len(takenOver)-1].Authority.Epoch)
}
