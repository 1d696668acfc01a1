package zklock_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/locking"
	"fencepost/locking/zklock"
)

const (
	// longTerm is one that no test outlives: what happens within it was not done by the end of a session.
	longTerm = 50 * time.Second
	// shortTerm is for tests that wait for the end of a session.
	shortTerm = 2 * time.Second
	// patience bounds what is to happen soon.
	patience = 10 * time.Second
)

func server() string {
	first, _, _ := strings.Cut(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ",")
	return first
}

func open(t *testing.T, servers, auth string, term time.Duration) (*locking.Backend, *zklock.Locker) {
	t.Helper()
	backend, err := zklock.Open(strings.Split(servers, ","), auth, term, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	return backend, backend.Locker.(*zklock.Locker)
}

func openLocker(t *testing.T, servers string, term time.Duration) *zklock.Locker {
	t.Helper()
	_, locker := open(t, servers, "", term)
	return locker
}

// observer is a client that has nothing to do with the lockers.
func observer(t *testing.T) *zk.Conn {
	t.Helper()
	conn, _, err := zk.Connect([]string{server()}, longTerm, zk.WithLogger(silence{}))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	return conn
}

type silence struct{}

func (silence) Printf(string, ...any) {}

func newKey() domain.Key { return domain.ItemKey("a-" + uuid.NewString()) }

func queue(key domain.Key) string { return "/fencepost/" + url.PathEscape(string(key)) }

func children(t require.TestingT, conn *zk.Conn, key domain.Key) []string {
	names, _, err := conn.Children(queue(key))
	if err != zk.ErrNoNode {
		require.NoError(t, err)
	}
	return names
}

func requireEmpty(t *testing.T, conn *zk.Conn, key domain.Key) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Empty(c, children(c, conn, key)) }, patience, 5*time.Millisecond)
}

func newID() domain.GrantID { return domain.GrantID(uuid.New()) }

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func acquire(t *testing.T, l *zklock.Locker, key domain.Key) *locking.Lease {
	t.Helper()
	lease, err := l.Acquire(within(t, patience), key, newID())
	require.NoError(t, err)
	return lease
}

// answer is what an Acquire that runs beside the test has come to.
type answer struct {
	lease *locking.Lease
	err   error
	at    time.Time
}

func acquireAside(ctx context.Context, l *zklock.Locker, key domain.Key) <-chan answer {
	c := make(chan answer, 1)
	go func() {
		lease, err := l.Acquire(ctx, key, newID())
		c <- answer{lease, err, time.Now()}
	}()
	return c
}

func await[T any](t *testing.T, what string, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(patience):
		require.FailNow(t, "not seen within "+patience.String(), what)
	}
	return value
}

// awaitLine waits until n nodes stand in the queue.
func awaitLine(t *testing.T, conn *zk.Conn, key domain.Key, n int) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { require.Len(c, children(c, conn, key), n) }, patience, time.Millisecond)
}

// The token is the transaction that has created the node; the node bears the grant's id, and its queue stays.
func TestNode(t *testing.T) {
	t.Parallel()
	l, conn, key, id := openLocker(t, server(), longTerm), observer(t), newKey(), newID()
	lease, err := l.Acquire(within(t, patience), key, id)
	require.NoError(t, err)
	names := children(t, conn, key)
	require.Len(t, names, 1)
	require.True(t, strings.HasPrefix(names[0], strings.ReplaceAll(uuid.UUID(id).String(), "-", "")+"-"), names[0])
	_, stat, err := conn.Exists(queue(key) + "/" + names[0])
	require.NoError(t, err)
	require.EqualValues(t, stat.Czxid, lease.Token)
	require.Positive(t, lease.Token)
	require.NotZero(t, stat.EphemeralOwner)

	require.NoError(t, lease.Release(t.Context()))
	require.Empty(t, children(t, conn, key))
	exists, stat, err := conn.Exists(queue(key))
	require.NoError(t, err)
	require.True(t, exists, "the queue counts on")
	require.Zero(t, stat.EphemeralOwner)

	second := acquire(t, l, key)
	require.Greater(t, second.Token, lease.Token)
	require.NoError(t, lease.Release(t.Context()), "a lease is released once; the next one's node is another")
	_, err = second.Extend(t.Context())
	require.NoError(t, err)
	require.NoError(t, second.Release(t.Context()))
}

// Who finds a queue empty has asked once. Who does not, or has lost the answer, looks.
func TestFirstHasAskedOnce(t *testing.T) {
	t.Parallel()
	for _, story := range []string{"nobody else", "somebody else", "the answer is lost"} {
		t.Run(story, func(t *testing.T) {
			t.Parallel()
			p, conn, key := newProxy(t, server()), observer(t), newKey()
			l := openLocker(t, p.address(), longTerm)
			require.NoError(t, acquire(t, l, key).Release(t.Context()))
			var looked atomic.Bool
			p.at(opExists, delayed, func() { looked.Store(true) })
			switch story {
			case "somebody else":
				_, err := conn.Create(queue(key)+"/somebody", nil, 0, zk.WorldACL(zk.PermAll))
				require.NoError(t, err)
			case "the answer is lost":
				p.at(opJoin, cutAfter, nil)
			}
			require.NoError(t, acquire(t, l, key).Release(t.Context()))
			require.Equal(t, story != "nobody else", looked.Load())
		})
	}
}

// The term is what the server grants, which has bounds of its own.
func TestTermIsGranted(t *testing.T) {
	t.Parallel()
	for _, asked := range []time.Duration{time.Millisecond, 24 * time.Hour} {
		sent := time.Now()
		lease := acquire(t, openLocker(t, server(), asked), newKey())
		require.NotEqual(t, asked, lease.Term)
		require.Positive(t, lease.Term)
		require.WithinRange(t, lease.Until, sent.Add(lease.Term*2/3), time.Now().Add(lease.Term*2/3))
	}
}

// The connection breaks at every step, with the server having carried the step out or not, and the caller stays or leaves.
// The lock goes on to the next one long before the session would end, and no node stays behind.
func TestCutConnection(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]operation{
		"create": opJoin, "children": opGetChildren, "watch": opGetData, "token": opExists, "delete": opDelete,
	} {
		for _, when := range []moment{cutBefore, cutAfter} {
			for _, leaves := range []bool{false, true} {
				story := "the caller stays"
				if leaves {
					story = "the caller leaves"
				}
				t.Run(strings.Join([]string{name, string(when), story}, ", "), func(t *testing.T) {
					t.Parallel()
					p, conn, key := newProxy(t, server()), observer(t), newKey()
					cut, others := openLocker(t, p.address(), longTerm), openLocker(t, server(), longTerm)
					require.NoError(t, acquire(t, cut, newKey()).Release(t.Context())) // it is connected
					ctx, leave := context.WithCancel(within(t, patience))
					strike := leave
					if !leaves {
						strike = nil
					}

					var before *locking.Lease
					if op == opGetData || op == opGetChildren || op == opExists {
						before = acquire(t, others, key) // there is somebody to look for, and to watch
					} else {
						require.NoError(t, acquire(t, others, key).Release(t.Context())) // the queue is there
					}
					struck := p.at(op, when, strike)
					mine := acquireAside(ctx, cut, key)
					if op != opDelete {
						await(t, "the connection is cut", struck)
					}
					if before != nil {
						require.NoError(t, before.Release(t.Context()))
					}
					got := await(t, "the acquire has returned", mine)
					switch {
					case got.err == nil: // also if the caller has left too late
						released := within(t, patience)
						if op == opDelete && leaves {
							released = ctx
						}
						if err := got.lease.Release(released); !leaves {
							require.NoError(t, err)
						}
					case leaves:
						require.ErrorIs(t, got.err, context.Canceled)
					default:
						require.NoError(t, got.err, "a broken connection is not the caller's affair")
					}
					await(t, "the connection is cut", struck)

					next := acquire(t, others, key)
					if got.err == nil {
						require.Greater(t, next.Token, got.lease.Token)
					}
					require.NoError(t, next.Release(t.Context()))
					requireEmpty(t, conn, key)
				})
			}
		}
	}
}

// Locks that are given back while another deletion is under way go together. Each has its own answer, whatever becomes of the
// request: one whose node is gone has lost its lock, and the others have not.
func TestDeletionsGoTogether(t *testing.T) {
	t.Parallel()
	const together = 20
	for _, story := range []string{"all are there", "one is gone", string(cutBefore), string(cutAfter)} {
		t.Run(story, func(t *testing.T) {
			t.Parallel()
			p, conn := newProxy(t, server()), observer(t)
			l := openLocker(t, p.address(), longTerm)
			first := acquire(t, l, newKey())
			var keys []domain.Key
			var leases []*locking.Lease
			for range together {
				keys = append(keys, newKey())
				leases = append(leases, acquire(t, l, keys[len(keys)-1]))
			}
			reached, letGo := make(chan struct{}), make(chan struct{})
			p.at(opDelete, delayed, func() { close(reached); <-letGo })
			var group sync.WaitGroup
			errs := make([]error, together)
			group.Go(func() { assert.NoError(t, first.Release(within(t, patience))) })
			await(t, "the first deletion is under way", reached)
			for i, lease := range leases {
				group.Go(func() { errs[i] = lease.Release(within(t, patience)) })
			}
			require.Eventually(t, func() bool { return l.Waiting() == together }, patience, time.Millisecond)
			when := delayed
			switch story {
			case "one is gone":
				require.NoError(t, conn.Delete(queue(keys[3])+"/"+children(t, conn, keys[3])[0], -1))
			case string(cutBefore), string(cutAfter):
				when = moment(story)
			}
			sent := p.at(opMulti, when, nil)
			close(letGo)
			await(t, "they go together", sent)
			group.Wait()
			for i, err := range errs {
				if story == "one is gone" && i == 3 {
					assert.ErrorIs(t, err, domain.ErrLockLost)
				} else {
					assert.NoError(t, err, i)
				}
				requireEmpty(t, conn, keys[i])
			}
		})
	}
}

// The reply to the create is lost, and then the connection breaks again while the node is searched: it is found all the
// same, and not made a second time.
func TestLostCreateIsFound(t *testing.T) {
	t.Parallel()
	p, conn, key := newProxy(t, server()), observer(t), newKey()
	l := openLocker(t, p.address(), longTerm)
	require.NoError(t, acquire(t, l, key).Release(t.Context()))
	p.at(opJoin, cutAfter, func() { p.at(opGetChildren, cutAfter, nil) })
	lease := acquire(t, l, key)
	names := children(t, conn, key)
	require.Len(t, names, 1)
	require.True(t, strings.HasSuffix(names[0], "-0000000001"), "the second node of the queue, not the third: %s", names[0])
	require.NoError(t, lease.Release(t.Context()))
	require.Empty(t, children(t, conn, key))
}

// A create that the server carries out when its caller has long gone is undone.
func TestLateCreateIsUndone(t *testing.T) {
	t.Parallel()
	p, conn, key := newProxy(t, server()), observer(t), newKey()
	l := openLocker(t, p.address(), longTerm)
	require.NoError(t, acquire(t, l, key).Release(t.Context()))
	resume := make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	p.at(opJoin, delayed, func() { leave(); <-resume })
	_, err := l.Acquire(ctx, key, newID())
	require.ErrorIs(t, err, context.Canceled)
	close(resume)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, stat, err := conn.Exists(queue(key))
		require.NoError(c, err)
		require.EqualValues(c, 4, stat.Cversion, "two nodes have come and gone")
	}, patience, 5*time.Millisecond)
	require.Empty(t, children(t, conn, key))
}

// The answer to Break's deletion is lost: the lock was broken, and the one who has it now keeps it.
func TestBreakWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	for _, when := range []moment{cutBefore, cutAfter} {
		t.Run(string(when), func(t *testing.T) {
			t.Parallel()
			p, conn, key := newProxy(t, server()), observer(t), newKey()
			holder, cut := openLocker(t, server(), longTerm), openLocker(t, p.address(), longTerm)
			lease := acquire(t, holder, key)
			next := acquireAside(within(t, patience), holder, key)
			awaitLine(t, conn, key, 2)
			struck := p.at(opDelete, when, nil)
			held, err := cut.Break(within(t, patience), key)
			await(t, "the connection is cut", struck)
			require.NoError(t, err)
			require.True(t, held)
			require.ErrorIs(t, lease.Release(within(t, patience)), domain.ErrLockLost)
			got := await(t, "the next has the lock", next)
			require.NoError(t, got.err)
			_, err = got.lease.Extend(within(t, patience))
			require.NoError(t, err, "one lock was broken, not two")
			require.NoError(t, got.lease.Release(within(t, patience)))
		})
	}
}

// A Break whose caller was told that it failed breaks no lock later.
func TestBreakThatWasGivenUp(t *testing.T) {
	t.Parallel()
	p, key := newProxy(t, server()), newKey()
	holder, slow := openLocker(t, server(), longTerm), openLocker(t, p.address(), longTerm)
	lease := acquire(t, holder, key)
	resume := make(chan struct{})
	ctx, giveUp := context.WithCancel(t.Context())
	p.at(opGetChildren, delayed, func() { giveUp(); <-resume })
	_, err := slow.Break(ctx, key)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, slow.Calls())
	close(resume)
	require.Eventually(t, func() bool { return slow.Calls() == 0 }, patience, time.Millisecond)
	require.NoError(t, lease.Release(within(t, patience)), "it was not broken")
}

// What somebody else has put into the queue is in nobody's way.
func TestForeignChildren(t *testing.T) {
	t.Parallel()
	l, conn, key := openLocker(t, server(), longTerm), observer(t), newKey()
	require.NoError(t, acquire(t, l, key).Release(t.Context()))
	for _, name := range []string{"junk", "lock-0000000000", "_c_" + strings.Repeat("0", 32) + "-lock-0000000000"} {
		_, err := conn.Create(queue(key)+"/"+name, nil, zk.FlagPersistent, zk.WorldACL(zk.PermAll))
		require.NoError(t, err)
	}
	lease := acquire(t, l, key)
	next := acquireAside(within(t, patience), l, key)
	awaitLine(t, conn, key, 5)
	require.NoError(t, lease.Release(t.Context()))
	got := await(t, "the next has the lock", next)
	require.NoError(t, got.err)
	require.NoError(t, got.lease.Release(t.Context()))
	require.Len(t, children(t, conn, key), 3)
	held, err := l.Break(t.Context(), key)
	require.NoError(t, err)
	require.False(t, held, "there is no holder to break")
}

// Not parallel: it counts the goroutines of the process.
func TestWaitersLeaveNothing(t *testing.T) {
	l, conn, key := openLocker(t, server(), longTerm), observer(t), newKey()
	lease := acquire(t, l, key)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			_, err := l.Acquire(ctx, key, newID())
			assert.ErrorIs(t, err, context.Canceled)
		})
	}
	awaitLine(t, conn, key, 101)
	cancel()
	wg.Wait()
	awaitLine(t, conn, key, 1)

	// And at any moment: before, in and after every step.
	for range 1000 {
		ctx, cancel := context.WithTimeout(t.Context(), rand.N(50*time.Millisecond))
		wg.Go(func() {
			defer cancel()
			_, err := l.Acquire(ctx, key, newID())
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	wg.Wait()
	awaitLine(t, conn, key, 1)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, patience, time.Millisecond) // one of Eventually's own
	require.NoError(t, lease.Release(t.Context()))
	require.Empty(t, children(t, conn, key))
}

// A holder whose messages do not arrive any more believes in its lock no longer than until two thirds of the session's
// time-out have passed, and the server gives the lock to the next one after that.
func TestHolderThatIsCutOff(t *testing.T) {
	t.Parallel()
	p, key := newProxy(t, server()), newKey()
	backend, _ := open(t, p.address(), "", shortTerm)
	waiting := openLocker(t, server(), longTerm)
	guard := locking.NewGuard(&database{}, locking.Backends{backend}, locking.Options{LockWait: patience, Log: slog.New(slog.DiscardHandler)})

	var cutAt, toldAt time.Time
	var next <-chan answer
	_, err := guard.Do(t.Context(), domain.Section{Keys: []domain.Key{key}, Run: func(ctx context.Context, _ domain.Tx) error {
		next = acquireAside(within(t, 2*patience), waiting, key)
		// It is renewed for a while, and would not be lost if nothing happened.
		select {
		case <-ctx.Done():
		case <-time.After(shortTerm):
		}
		require.NoError(t, context.Cause(ctx), "a lease that is renewed is not lost")
		p.set(func(p *proxy) { p.swallow = true })
		cutAt = time.Now()
		await(t, "the section is told", ctx.Done())
		toldAt = time.Now()
		return context.Cause(ctx)
	}})
	require.ErrorIs(t, err, domain.ErrLockLost)
	require.Less(t, toldAt.Sub(cutAt), shortTerm*2/3+300*time.Millisecond)
	got := await(t, "the next has the lock", next)
	require.NoError(t, got.err)
	require.True(t, toldAt.Before(got.at), "the section was told %s after the next one had the lock", toldAt.Sub(got.at))
	t.Logf("told after %s, passed on after %s", toldAt.Sub(cutAt), got.at.Sub(cutAt))
	p.set(func(p *proxy) { p.swallow = false })
}

// The server ends the session while the client is away. When it is back, it learns that, and works on with a new one.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	p, conn, key := newProxy(t, server()), observer(t), newKey()
	l, others := openLocker(t, p.address(), shortTerm), openLocker(t, server(), longTerm)
	lease := acquire(t, l, key)
	next := acquireAside(within(t, patience), others, key)
	waiter := acquireAside(within(t, 2*patience), l, key) // of the session that is going to end
	awaitLine(t, conn, key, 3)
	p.set(func(p *proxy) { p.refuse = true })
	p.cut()
	got := await(t, "the next has the lock", next)
	require.NoError(t, got.err)
	require.Greater(t, got.lease.Token, lease.Token)

	p.set(func(p *proxy) { p.refuse = false })
	await(t, "the holder learns that its session is over", lease.Gone)
	_, err := lease.Extend(within(t, patience))
	require.ErrorIs(t, err, domain.ErrLockLost)
	require.ErrorIs(t, lease.Release(within(t, patience)), domain.ErrLockLost)
	_, err = got.lease.Extend(within(t, patience))
	require.NoError(t, err, "the next one still has its lock")

	awaitLine(t, conn, key, 2) // the waiter is in line again
	require.NoError(t, got.lease.Release(t.Context()))
	again := await(t, "the waiter has the lock", waiter)
	require.NoError(t, again.err)
	require.Greater(t, again.lease.Token, got.lease.Token)
	select {
	case <-again.lease.Gone:
		require.Fail(t, "the new session is not over")
	default:
	}
	require.NoError(t, again.lease.Release(t.Context()))
	requireEmpty(t, conn, key)
}

// A server whose data were lost knows of fewer transactions than the client and refuses it. The client must not be refused
// forever.
func TestServerThatHasForgotten(t *testing.T) {
	t.Parallel()
	p := newProxy(t, server())
	l := openLocker(t, p.address(), longTerm)
	lease := acquire(t, l, newKey())
	p.set(func(p *proxy) { p.forgetful = true })
	p.cut()
	began := time.Now()
	await(t, "the holder learns that its session is over", lease.Gone)
	require.NoError(t, acquire(t, l, newKey()).Release(t.Context()))
	t.Logf("working again after %s", time.Since(began))
}

// Most servers of an ensemble are there and refuse everybody: they are electing a leader, and callers wait for it. But not
// for ever, and not at all when most of the servers are gone.
func TestElection(t *testing.T) {
	t.Parallel()
	const gone = "127.0.0.1:1"
	p, q, key := newProxy(t, server()), newProxy(t, server()), newKey()
	l := openLocker(t, strings.Join([]string{p.address(), gone, q.address()}, ","), longTerm)
	require.NoError(t, acquire(t, l, key).Release(t.Context()))
	refuse := func(yes bool) {
		for _, p := range []*proxy{p, q} {
			p.set(func(p *proxy) { p.refuse, p.refused = yes, 0 })
			p.cut()
		}
	}
	refused := func() {
		t.Helper()
		require.Eventually(t, func() (seen bool) {
			p.set(func(p *proxy) { q.set(func(q *proxy) { seen = p.refused >= 2 && q.refused >= 2 }) })
			return seen
		}, patience, time.Millisecond)
	}

	refuse(true)
	waiter := acquireAside(within(t, patience), l, key)
	refused()
	refuse(false)
	got := await(t, "the waiter has the lock", waiter)
	require.NoError(t, got.err)
	require.NoError(t, got.lease.Release(t.Context()))

	refuse(true)
	refused()
	_, err := l.Acquire(within(t, time.Minute), key, newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.NotErrorIs(t, err, context.DeadlineExceeded)

	_, err = openLocker(t, strings.Join([]string{p.address(), gone, gone}, ","), longTerm).Acquire(within(t, patience/2), key, newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}

// A connection that breaks and comes back within the session's time-out costs nobody his lock.
func TestLeaseSurvivesReconnection(t *testing.T) {
	t.Parallel()
	p, key := newProxy(t, server()), newKey()
	l := openLocker(t, p.address(), longTerm)
	lease := acquire(t, l, key)
	for range 5 {
		p.cut()
		until, err := lease.Extend(within(t, patience))
		require.NoError(t, err)
		require.True(t, until.After(lease.Until))
	}
	select {
	case <-lease.Gone:
		require.Fail(t, "the session is not over")
	default:
	}
	require.NoError(t, lease.Release(t.Context()))
}

// A lease that nobody extends ends, although its session lives on.
func TestLeaseThatIsNotExtended(t *testing.T) {
	t.Parallel()
	conn, key := observer(t), newKey()
	l := openLocker(t, server(), shortTerm)
	lease := acquire(t, l, key)
	began := time.Now()
	requireEmpty(t, conn, key)
	require.Greater(t, time.Since(began), lease.Term*2/3, "not while its holder may believe in it")
	_, err := lease.Extend(t.Context())
	require.ErrorIs(t, err, domain.ErrLockLost)
	select {
	case <-lease.Gone:
		require.Fail(t, "the session is not over")
	default:
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	backend, l := open(t, "127.0.0.1:1", "user:secret", longTerm)
	began := time.Now()
	_, err := l.Acquire(within(t, time.Minute), newKey(), newID())
	var unavailable *domain.UnavailableError
	require.ErrorAs(t, err, &unavailable)
	require.Equal(t, "ZooKeeper", unavailable.Server)
	_, err = backend.Identify(t.Context())
	require.ErrorAs(t, err, &unavailable)
	require.Less(t, time.Since(began), patience, "nobody waits for a server that is not there")
	require.NotContains(t, err.Error()+backend.Server, "secret")
}

// A server that takes connections and says nothing holds nobody longer than its context.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	l := openLocker(t, listener.Addr().String(), longTerm)
	began := time.Now()
	_, err = l.Acquire(within(t, 100*time.Millisecond), newKey(), newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), time.Second)
	_, err = l.Acquire(within(t, time.Minute), newKey(), newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.Less(t, time.Since(began), patience)
}

// A server that stops answering in the middle leaves the callers to their contexts, and the number of calls that hang is
// bounded.
func TestServerThatFreezes(t *testing.T) {
	p := newProxy(t, server())
	l := openLocker(t, p.address(), longTerm)
	require.NoError(t, acquire(t, l, newKey()).Release(t.Context()))
	before := runtime.NumGoroutine()
	p.set(func(p *proxy) { p.swallow = true })
	ctx := within(t, 500*time.Millisecond)
	var wg sync.WaitGroup
	for range 3000 {
		wg.Go(func() {
			_, err := l.Acquire(ctx, newKey(), newID())
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	wg.Wait()
	require.Less(t, runtime.NumGoroutine(), before+600)
	p.set(func(p *proxy) { p.swallow = false })
	p.cut()
	require.NoError(t, acquire(t, l, newKey()).Release(t.Context()))
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, patience, 5*time.Millisecond)
}

// With a user, the nodes are nobody else's, also after a reconnection.
func TestAuth(t *testing.T) {
	t.Parallel()
	p, conn, key := newProxy(t, server()), observer(t), newKey()
	_, l := open(t, p.address(), "alice:pass:word", longTerm)
	for range 2 {
		lease := acquire(t, l, key)
		_, _, err := conn.Children(queue(key))
		require.ErrorIs(t, err, zk.ErrNoAuth)
		require.ErrorIs(t, conn.Delete(queue(key)+"/x", -1), zk.ErrNoAuth)
		require.NoError(t, lease.Release(t.Context()))
		p.cut()
	}
	for _, auth := range []string{"", "alice:wrong", "bob:pass:word"} {
		_, other := open(t, server(), auth, longTerm)
		_, err := other.Acquire(within(t, patience), key, newID())
		require.ErrorIs(t, err, domain.ErrUnavailable)
		require.ErrorContains(t, err, "belong to somebody else")
		require.NotContains(t, err.Error(), "wrong")
	}
	_, same := open(t, server(), "alice:pass:word", longTerm)
	require.NoError(t, acquire(t, same, key).Release(t.Context()))
	for _, bad := range []string{"alice", ":secret", "alice:"} {
		_, err := zklock.Open([]string{server()}, bad, longTerm, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "not user:password")
		require.NotContains(t, err.Error(), "secret")
	}
}

// The identity is the same for everybody who reaches the ensemble, and lasts as long as its data.
func TestIdentity(t *testing.T) {
	t.Parallel()
	identities := make(chan string, 8)
	for range cap(identities) {
		backend, _ := open(t, server(), "", longTerm)
		go func() {
			identity, err := backend.Identify(t.Context())
			assert.NoError(t, err)
			identities <- identity
		}()
	}
	first := await(t, "an identity", identities)
	require.Regexp(t, `^zookeeper/[0-9a-f-]{36}$`, first)
	for range cap(identities) - 1 {
		require.Equal(t, first, await(t, "an identity", identities))
	}
}

// After Close nothing is tried any more, and a backend that was never used is closed without having connected.
func TestClose(t *testing.T) {
	t.Parallel()
	conn, key := observer(t), newKey()
	backend, l := open(t, server(), "", longTerm)
	lease := acquire(t, l, key)
	waiter := acquireAside(within(t, patience), l, key)
	awaitLine(t, conn, key, 2)
	require.NoError(t, backend.Close())
	requireEmpty(t, conn, key) // the session was ended, and did not time out
	require.ErrorIs(t, await(t, "the waiter is told", waiter).err, domain.ErrUnavailable)
	await(t, "the holder is told", lease.Gone)
	_, err := l.Acquire(within(t, patience), key, newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
}

// database is a PostgreSQL that has no part in these tests: every section may run.
type database struct {
	locking.Database
	fingerprint atomic.Value // as it was claimed last
}

func (d *database) Authority(_ context.Context, key domain.Key) (domain.Authority, error) {
	fingerprint, _ := d.fingerprint.Load().(string)
	return domain.Authority{Scope: domain.Scope(key), Strategy: zklock.Name, Fingerprint: fingerprint, Epoch: 1}, nil
}

func (d *database) ClaimAuthority(_ context.Context, _ domain.Scope, _, fingerprint string, _ domain.Decider) (domain.Authority, error) {
	d.fingerprint.Store(fingerprint)
	return domain.Authority{}, nil
}

func (*database) Transact(ctx context.Context, _ []domain.Grant, _ time.Duration, _ bool, collect domain.Collect) (domain.Receipt, []error, error) {
	return domain.Receipt{}, []error{collect(false)[0].Run(ctx, nil)}, nil
}
