package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/locking"
	"fencepost/locking/redislock"
)

// soon is far less than the term: what happens within it does not wait for a lock to expire.
const soon = 10 * time.Second

// cluster is five Redis servers, each behind a proxy that can take it away.
type cluster struct {
	t       *testing.T
	proxies []*proxy
	clients []*redis.Client // past the proxies
}

func masters(t *testing.T) []string {
	t.Helper()
	urls := strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ",")
	require.Len(t, urls, 5)
	return urls
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t}
	for _, u := range masters(t) {
		o, err := redis.ParseURL(u)
		require.NoError(t, err)
		client := redis.NewClient(o)
		t.Cleanup(func() { _ = client.Close() })
		c.clients = append(c.clients, client)
		c.proxies = append(c.proxies, newProxy(t, o.Addr))
	}
	return c
}

func (c *cluster) open(ttl time.Duration) *locking.Backend {
	c.t.Helper()
	var urls []string
	for _, p := range c.proxies {
		urls = append(urls, "redis://"+p.addr)
	}
	return openRedlock(c.t, urls, ttl)
}

func openRedlock(t *testing.T, urls []string, ttl time.Duration) *locking.Backend {
	t.Helper()
	backend, err := redislock.OpenRedlock(urls, ttl, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	return backend
}

func lockOf(key domain.Key) string { return "fencepost:redlock:{" + string(key) + "}:lock" }

// holders counts the nodes that have the lock.
func (c *cluster) holders(key domain.Key) (n int64) {
	c.t.Helper()
	for _, client := range c.clients {
		exists, err := client.Exists(c.t.Context(), lockOf(key)).Result()
		require.NoError(c.t, err)
		n += exists
	}
	return n
}

func (c *cluster) requireNothingLeft(key domain.Key) {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return c.holders(key) == 0 }, soon, time.Millisecond, "a lock was left behind")
}

// acquireEverywhere returns a lease that has the lock on all nodes. A grant waits for a majority only, and a node may be too
// slow to be part of it.
func (c *cluster) acquireEverywhere(l locking.Locker, key domain.Key) *locking.Lease {
	c.t.Helper()
	ctx := within(c.t, time.Minute)
	for {
		lease, err := l.Acquire(ctx, key, newID())
		require.NoError(c.t, err)
		for began := time.Now(); time.Since(began) < time.Second; {
			if c.holders(key) == 5 {
				return lease
			}
		}
		require.NoError(c.t, lease.Release(ctx))
	}
}

// eventually repeats what may fail because the machine is too busy to answer within the time-out of a node.
func eventually(t *testing.T, want error, f func() error) {
	t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < soon; {
		if err = f(); errors.Is(err, want) {
			return
		}
		require.ErrorIs(t, err, domain.ErrUnavailable)
	}
	require.ErrorIs(t, err, want)
}

// each does the same to some of the nodes.
func (c *cluster) each(from, to int, f func(*proxy)) {
	for _, p := range c.proxies[from:to] {
		f(p)
	}
}

// proxy stands between a client and a server.
type proxy struct {
	addr   string
	server string

	mu      sync.Mutex
	conns   map[net.Conn]bool
	gone    bool
	resumed chan struct{} // closed unless the server is paused
	deaf    bool          // answers are thrown away
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{addr: listener.Addr().String(), server: server, conns: map[net.Conn]bool{}, resumed: make(chan struct{})}
	close(p.resumed)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		p.resume()
		p.cut()
	})
	return p
}

// cut ends all connections and makes no new ones, as the death of the server does. The port is kept: somebody else might
// take it.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}

func (p *proxy) restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = false
}

// pause lets connections be made and requests be sent, and nothing comes of it before resume.
func (p *proxy) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumed = make(chan struct{})
}

func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.resumed:
	default:
		close(p.resumed)
	}
}

func (p *proxy) loseAnswers(lose bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = lose
}

func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	if p.gone {
		_, _ = client.Close(), server.Close()
	}
	p.mu.Unlock()
	var group sync.WaitGroup
	group.Go(func() { p.copy(server, client, false) })
	group.Go(func() { p.copy(client, server, true) })
	group.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// copy carries what was received to the other side, even if the sender has gone meanwhile.
func (p *proxy) copy(to, from net.Conn, answers bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		resumed, lost := p.resumed, p.deaf && answers
		p.mu.Unlock()
		<-resumed
		if n > 0 && !lost {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
	if answers {
		_, _ = io.Copy(io.Discard, from)
		_ = to.Close()
		_ = from.Close()
	}
}

func TestRedlockNeedsAnOddNumber(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 4} {
		_, err := redislock.OpenRedlock(masters(t)[:n], term, nil, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, fmt.Sprintf("not %d", n))
	}
}

// A caller that asks again for a lock which it has gets it, with a newer token.
func TestRedlockOwnLockIsSuccess(t *testing.T) {
	t.Parallel()
	l, key, id := openRedlock(t, masters(t), term).Locker, newKey(), newID()
	first, err := l.Acquire(within(t, soon), key, id)
	require.NoError(t, err)
	again, err := l.Acquire(within(t, soon), key, id)
	require.NoError(t, err)
	require.Greater(t, again.Token, first.Token)
	require.NoError(t, again.Release(t.Context()))
}

// Tokens are exact beyond 2^53, and one node that knows a larger number is enough.
func TestRedlockLargeTokens(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	const large = 1<<53 + 2
	for _, client := range c.clients[:3] { // one of them is in every majority
		require.NoError(t, client.Set(t.Context(), "fencepost:redlock:{"+string(key)+"}:token", large, 0).Err())
	}
	l := c.open(term).Locker
	for n := range domain.Token(3) {
		lease, err := l.Acquire(within(t, soon), key, newID())
		require.NoError(t, err)
		require.Equal(t, large+1+n, lease.Token)
		require.NoError(t, lease.Release(t.Context()))
		c.requireNothingLeft(key)
	}
}

// A number from which nobody can count on is nobody's token: it starts again, and the fence sees to the rest.
func TestRedlockNumberAtItsEnd(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	for i, number := range []string{"9223372036854775807", "1000000000000000000", "junk", "", "-1"} {
		require.NoError(t, c.clients[i].Set(t.Context(), "fencepost:redlock:{"+string(key)+"}:token", number, 0).Err())
	}
	l := c.open(term).Locker
	for n := range domain.Token(2) {
		lease, err := l.Acquire(within(t, soon), key, newID())
		require.NoError(t, err)
		require.Equal(t, 1+n, lease.Token)
		require.NoError(t, lease.Release(t.Context()))
		c.requireNothingLeft(key)
	}
}

// Of five servers two may be gone. With three gone, the answer comes at once and nothing stays behind; when they are back,
// the work goes on, with larger tokens.
func TestRedlockServersGone(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	l := c.open(term).Locker
	var last domain.Token
	works := func() {
		t.Helper()
		lease, err := l.Acquire(within(t, soon), key, newID())
		require.NoError(t, err)
		require.Greater(t, lease.Token, last)
		last = lease.Token
		eventually(t, nil, func() error {
			_, err := lease.Extend(within(t, soon))
			return err
		})
		require.NoError(t, lease.Release(within(t, soon)))
	}
	works()
	c.requireNothingLeft(key) // a release waits for a majority only, and what is cut off cannot be asked
	c.each(0, 2, (*proxy).cut)
	works()
	works()
	c.each(2, 3, (*proxy).cut)
	began := time.Now()
	_, err := l.Acquire(within(t, soon), key, newID())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.Less(t, time.Since(began), soon/2)
	c.requireNothingLeft(key)
	c.each(0, 3, (*proxy).restore)
	works()
	c.requireNothingLeft(key)
	c.each(3, 5, (*proxy).cut)
	works()
	c.each(3, 5, (*proxy).restore)
	c.requireNothingLeft(key)
}

// A holder that loses a minority keeps its lock. One that loses a majority cannot extend it, but has not lost it yet: the
// servers may come back. When they say that the lock is not its own, it has.
func TestRedlockHolderLosesServers(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	backend := c.open(term)
	lease := c.acquireEverywhere(backend.Locker, key)
	extend := func() error {
		_, err := lease.Extend(within(t, soon))
		return err
	}
	c.each(0, 3, (*proxy).cut)
	require.ErrorIs(t, extend(), domain.ErrUnavailable)
	c.each(0, 1, (*proxy).restore)
	eventually(t, nil, extend)
	c.each(1, 3, (*proxy).restore)
	for _, client := range c.clients[:3] {
		require.NoError(t, client.Del(t.Context(), lockOf(key)).Err())
	}
	eventually(t, domain.ErrLockLost, extend)
	require.ErrorIs(t, lease.Release(t.Context()), domain.ErrLockLost)
	c.requireNothingLeft(key)
}

// One server that is paused slows nobody down, and when it goes on it keeps nothing that it was asked for in its sleep.
func TestRedlockPausedServer(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	const nodeTimeout = 500 * time.Millisecond // for a term of 30 seconds
	l := c.open(term).Locker
	median := func() time.Duration { // a busy machine has its outliers, with and without the pause
		t.Helper()
		var took []time.Duration
		for range 21 {
			began := time.Now()
			lease, err := l.Acquire(within(t, soon), key, newID())
			took = append(took, time.Since(began))
			require.NoError(t, err)
			require.NoError(t, lease.Release(t.Context()))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	usual := median()
	c.each(4, 5, (*proxy).pause)
	paused := median()
	t.Logf("an acquire takes %s, with a server paused %s", usual, paused)
	require.Less(t, paused, usual+nodeTimeout+50*time.Millisecond)
	c.each(4, 5, (*proxy).resume)
	c.requireNothingLeft(key)
}

// Answers are lost after the servers have executed what they were asked. When those of a majority are, the caller is told, but not
// before half of its wait is over: a process that has too much to do hears its servers late.
func TestRedlockLostAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		deaf  int
		works bool
	}{{2, true}, {3, false}} {
		t.Run(fmt.Sprint(test.deaf, " of 5"), func(t *testing.T) {
			t.Parallel()
			c, key := newCluster(t), newKey()
			l := c.open(term).Locker
			warm, err := l.Acquire(within(t, soon), newKey(), newID()) // connections are there
			require.NoError(t, err)
			require.NoError(t, warm.Release(t.Context()))

			c.each(0, test.deaf, func(p *proxy) { p.loseAnswers(true) })
			began := time.Now()
			lease, err := l.Acquire(within(t, soon), key, newID())
			if test.works {
				require.NoError(t, err)
				require.NoError(t, lease.Release(within(t, soon)))
			} else {
				require.ErrorIs(t, err, domain.ErrUnavailable)
				require.GreaterOrEqual(t, time.Since(began), soon/2)
			}
			c.each(0, test.deaf, func(p *proxy) { p.loseAnswers(false) })
			c.requireNothingLeft(key)
		})
	}
}

// A caller that gives up while its requests are on the way gets its answer at once. What they take when they arrive is
// given back.
func TestRedlockCancelledOnTheWay(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	l := c.open(term).Locker
	warm, err := l.Acquire(within(t, soon), newKey(), newID())
	require.NoError(t, err)
	require.NoError(t, warm.Release(t.Context()))

	c.each(0, 5, (*proxy).pause)
	began := time.Now()
	_, err = l.Acquire(within(t, 100*time.Millisecond), key, newID())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 400*time.Millisecond, "less than the time-out of a node")
	c.each(0, 5, (*proxy).resume)
	c.requireNothingLeft(key)
	lease, err := l.Acquire(within(t, soon), key, newID())
	require.NoError(t, err)
	require.NoError(t, lease.Release(t.Context()))
}

// Others have the lock on some nodes. On two they are not in the way. On three they are, whoever they are, and what was
// taken on the rest is given back while the caller waits.
func TestRedlockPartialAcquire(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	l := c.open(term).Locker
	for i, client := range c.clients[:2] {
		require.NoError(t, client.Set(t.Context(), lockOf(key), fmt.Sprint("other ", i), term).Err())
	}
	lease, err := l.Acquire(within(t, soon), key, newID())
	require.NoError(t, err)
	require.NoError(t, lease.Release(t.Context()))

	for _, others := range []string{"aaa", "abc"} { // one owner of three nodes; three owners of one node each
		for i, client := range c.clients[:3] {
			require.NoError(t, client.Set(t.Context(), lockOf(key), others[i:i+1], term).Err())
		}
		_, err = l.Acquire(within(t, 200*time.Millisecond), key, newID())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Eventually(t, func() bool { return c.holders(key) == 3 }, soon, time.Millisecond)
	}
}

// A waiter hears the release, also when a minority of the servers is gone.
func TestRedlockReleaseIsHeard(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	holder, waiter := c.open(term).Locker, c.open(term).Locker
	channel := "fencepost:redlock:{" + string(key) + "}:released"
	for from := range 4 {
		lease, err := holder.Acquire(within(t, soon), key, newID())
		require.NoError(t, err)
		result := make(chan error, 1)
		go func() {
			next, err := waiter.Acquire(within(t, soon), key, newID())
			if err == nil {
				err = next.Release(t.Context())
			}
			result <- err
		}()
		for _, client := range c.clients {
			require.Eventually(t, func() bool {
				return client.PubSubNumSub(t.Context(), channel).Val()[channel] == 1
			}, soon, time.Millisecond, "the waiter listens on every server")
		}
		c.each(from, from+2, (*proxy).cut)
		require.NoError(t, lease.Release(within(t, soon)))
		require.NoError(t, <-result)
		c.each(from, from+2, (*proxy).restore)
		c.requireNothingLeft(key)
	}
}

// Many clients, locks that are broken at any moment, servers that come and go: no token is issued twice, and a client that
// began after another's grant gets a larger one.
func TestRedlockTokensUnderFire(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	const workers, rounds = 6, 20
	var mu sync.Mutex
	var newest domain.Token
	issued := map[domain.Token]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	over := make(chan struct{})
	var fire, group sync.WaitGroup
	fire.Go(func() {
		breaker := openRedlock(t, masters(t), term).Locker.(*redislock.Redlock)
		for fired := 0; ; {
			select {
			case <-over:
				return
			case <-time.After(rand.N(20 * time.Millisecond)): // any moment will do
			}
			mu.Lock()
			granted := len(issued)
			mu.Unlock()
			if fired > 4*(granted+1) {
				continue // on a machine that is busy with other things nobody would come through
			}
			fired++
			_, err := breaker.Break(ctx, key)
			assert.NoError(t, err)
			p := c.proxies[fired%len(c.proxies)]
			p.cut()
			p.restore()
		}
	})
	for range workers {
		l := c.open(term).Locker
		group.Go(func() {
			for done := 0; done < rounds; {
				mu.Lock()
				before := newest
				mu.Unlock()
				lease, err := l.Acquire(ctx, key, newID())
				if errors.Is(err, domain.ErrUnavailable) && ctx.Err() == nil {
					continue // three at once were seen to fail
				}
				if !assert.NoError(t, err) {
					return
				}
				mu.Lock()
				assert.False(t, issued[lease.Token], "token %d was issued twice", lease.Token)
				assert.Greater(t, lease.Token, before)
				issued[lease.Token] = true
				newest = max(newest, lease.Token)
				mu.Unlock()
				_ = lease.Release(ctx) // it may have been broken
				done++
			}
		})
	}
	group.Wait()
	close(over)
	fire.Wait()
	t.Logf("%d grants, the newest token is %d", len(issued), newest)
	require.Len(t, issued, workers*rounds)
}

// identityURLs are the servers, with a database of their own that no other test knows: here the identity is lost.
func identityURLs(t *testing.T) (urls []string, clients []*redis.Client) {
	t.Helper()
	for _, text := range masters(t) {
		u, err := url.Parse(text)
		require.NoError(t, err)
		u.Path = "/15"
		urls = append(urls, u.String())
		o, err := redis.ParseURL(u.String())
		require.NoError(t, err)
		client := redis.NewClient(o)
		require.NoError(t, client.FlushDB(t.Context()).Err())
		t.Cleanup(func() {
			_ = client.FlushDB(context.WithoutCancel(t.Context())).Err()
			_ = client.Close()
		})
		clients = append(clients, client)
	}
	return urls, clients
}

// The identity belongs to the servers together.
func TestRedlockIdentity(t *testing.T) {
	t.Parallel()
	urls, clients := identityURLs(t)
	identify := func(urls ...string) (id string) {
		t.Helper()
		backend := openRedlock(t, urls, term)
		eventually(t, nil, func() (err error) {
			id, err = backend.Identify(t.Context())
			return err
		})
		return id
	}
	gone := "redis://127.0.0.1:1"

	// Instances that begin at once on empty servers agree, at the latest when they ask again.
	var group sync.WaitGroup
	for range 4 {
		backend := openRedlock(t, urls, term)
		group.Go(func() {
			_, _ = backend.Identify(t.Context())
		})
	}
	group.Wait()
	first := identify(urls...)
	for _, client := range clients {
		id, err := client.Get(t.Context(), "fencepost:redlock:identity").Result()
		require.NoError(t, err)
		require.Equal(t, "redlock/5/"+id, first)
	}

	require.Equal(t, first, identify(urls[4], urls[2], urls[3], urls[0], urls[1]), "their order does not matter")
	require.Equal(t, first, identify(gone, urls[1], gone+"1", urls[3], urls[4]), "a minority is gone")
	for _, client := range clients[:2] {
		require.NoError(t, client.FlushDB(t.Context()).Err())
	}
	require.Equal(t, first, identify(urls...), "a minority has come back empty")
	require.Equal(t, first, identify(urls[0], urls[1], gone, gone+"1", urls[4]), "and was given the id again")
	require.NotEqual(t, first, identify(urls[:3]...), "with fewer servers, majorities need not meet")

	for _, client := range clients[:3] {
		require.NoError(t, client.FlushDB(t.Context()).Err())
	}
	second := identify(urls...)
	require.NotEqual(t, first, second, "a majority has forgotten its numbers")
	require.Equal(t, second, identify(urls...))

	_, err := openRedlock(t, []string{gone, gone + "1", gone + "2", urls[3], urls[4]}, term).Identify(t.Context())
	require.ErrorIs(t, err, domain.ErrUnavailable)
}

// Servers that are silent for longer than a node may be cost a caller who can wait neither the lock nor the answer who they are.
func TestRedlockSilence(t *testing.T) {
	t.Parallel()
	c, key := newCluster(t), newKey()
	backend := c.open(term)
	c.each(0, 3, (*proxy).pause)
	_, err := backend.Identify(t.Context()) // nobody says how long it may take
	require.ErrorIs(t, err, domain.ErrUnavailable)

	var group sync.WaitGroup
	var identifyErr, acquireErr error
	group.Go(func() { _, identifyErr = backend.Identify(within(t, 3*soon)) })
	group.Go(func() {
		var lease *locking.Lease
		if lease, acquireErr = backend.Locker.Acquire(within(t, 3*soon), key, newID()); acquireErr == nil {
			acquireErr = lease.Release(t.Context())
		}
	})
	_, err = backend.Locker.Acquire(t.Context(), newKey(), newID()) // three tries that fail, and so have those of the others
	require.ErrorIs(t, err, domain.ErrUnavailable)
	c.each(0, 3, (*proxy).resume)
	group.Wait()
	require.NoError(t, identifyErr)
	require.NoError(t, acquireErr)
	c.requireNothingLeft(key)
}

// Two addresses of one server would let its loss count as one.
func TestRedlockSameServerTwice(t *testing.T) {
	t.Parallel()
	urls := masters(t)
	alias := strings.Replace(urls[0], "127.0.0.1", "localhost", 1)
	for _, twice := range []string{urls[0], alias} {
		_, err := openRedlock(t, []string{urls[0], urls[1], twice}, term).Identify(t.Context())
		require.ErrorIs(t, err, domain.ErrUnavailable)
		require.ErrorContains(t, err, "are the same server")
	}
}
