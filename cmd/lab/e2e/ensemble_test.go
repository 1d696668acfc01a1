package e2e_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain"
	"fencepost/locking"
	"fencepost/locking/lockingtest"
	"fencepost/locking/strategies"
	"fencepost/locking/zklock"
)

var startEnsemble = sync.OnceValues(func() (*servers.Ensemble, error) { return lab.StartEnsemble(context.Background()) })

// ensemble returns the three ZooKeeper servers that the tests of this file share. A test that has passed leaves them running.
func ensemble(t *testing.T) *servers.Ensemble {
	t.Helper()
	e, err := startEnsemble()
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, m := range e.Members {
			if ctx := context.WithoutCancel(t.Context()); t.Failed() {
				_ = m.Resume()
				_ = m.Start(ctx)
			}
		}
	})
	return e
}

func leader(t *testing.T, e *servers.Ensemble) (leader *servers.Server, others []*servers.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leader, others, err := e.Leader(ctx)
	require.NoError(t, err)
	return leader, others
}

// The conformance suite passes on an ensemble of three, while its leader is killed and comes back, again and again.
func TestEnsembleConforms(t *testing.T) {
	for _, variable := range lab.Env() { // the suite makes databases of its own on our server
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	e := ensemble(t)
	row, known := strategies.Find(zklock.Name)
	require.True(t, known)
	over, kills := make(chan struct{}), make(chan int)
	go func() { kills <- killLeaders(t, e, over) }()
	t.Run("suite", func(t *testing.T) {
		lockingtest.Run(t, row, strategies.Config{
			ZooKeeperServers: strings.Split(e.Addresses(), ","),
			RedisURL:         os.Getenv("FENCEPOST_REDIS_URL"), // some switch to another strategy
		}, lockingtest.Instance{PoolSize: 8, MaxBatch: 1}) // each section with a lock of its own
	})
	close(over)
	n := <-kills
	t.Logf("%d leaders were killed", n)
	require.Positive(t, n)
}

// killLeaders kills one leader after the other until it is over, always out of three, and returns how many.
func killLeaders(t *testing.T, e *servers.Ensemble, over <-chan struct{}) (kills int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for {
		killed, _, err := e.Leader(ctx)
		if !assert.NoError(t, err) || !assert.NoError(t, killed.Kill()) {
			return kills
		}
		kills++
		_, _, err = e.Leader(ctx)
		if !assert.NoError(t, err) || !assert.NoError(t, killed.Start(ctx)) {
			return kills
		}
		select {
		case <-over:
			return kills
		case <-time.After(5 * time.Second): // no more often, or the suite gets nowhere
		}
	}
}

// The leader goes under load, by being killed or by being frozen, and comes back. Requests are served, or told that nothing
// was written; the item is sold out to the last unit and not beyond; the tokens of the next leader are larger; and no node
// stays behind.
func TestLeaderGoes(t *testing.T) {
	e := ensemble(t)
	for name, fault := range map[string]struct {
		goes      func(*servers.Server) error
		comesBack func(context.Context, *servers.Server) error
	}{
		"is killed": {
			func(s *servers.Server) error { return s.Kill() },
			func(ctx context.Context, s *servers.Server) error { return s.Start(ctx) },
		},
		"is frozen": {
			func(s *servers.Server) error { return s.Pause() },
			func(_ context.Context, s *servers.Server) error { return s.Resume() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			const (
				term     = 4 * time.Second
				election = 5 * time.Second // with the two seconds in which a frozen leader is waited for
				stock    = 500
			)
			running := start(t, 3, "zookeeper", "FENCEPOST_ZOOKEEPER_SERVERS="+e.Addresses(), "FENCEPOST_LEASE_TTL="+term.String())
			item := createStock(t, running[0].URL, stock)
			crowd := startBuyers(t, urls(running), item)
			crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })

			gone, _ := leader(t, e)
			require.NoError(t, fault.goes(gone))
			began, before := time.Now(), crowd.Count()
			crowd.until(t, "work goes on", func(b *buyers) bool { return len(b.Acknowledged) >= before+50 })
			took := time.Since(began)
			next, _ := leader(t, e)
			require.NotSame(t, gone, next)
			require.NoError(t, fault.comesBack(t.Context(), gone))
			crowd.until(t, "the item is sold out", func(b *buyers) bool { return b.Codes["out_of_stock"] >= len(running) })
			acknowledged := crowd.stop()

			t.Logf("50 reservations took %s from when the leader was gone; %v", took, crowd.Codes)
			require.Less(t, took, term+election)
			for code := range crowd.Codes { // of these, all but the first say that nothing was written
				require.Contains(t, []string{
					"created", "out_of_stock", "backend_unavailable", "lock_lost", "lock_timeout", "stale_fencing_token",
				}, code, "%v", crowd.LastProblem)
			}
			made := reservations(t, item)
			require.ElementsMatch(t, made, acknowledged)
			require.Len(t, made, stock)
			requireLedgerAgrees(t, "item/"+item)
			var epochs, leaders int
			require.NoError(t, judge.QueryRow(t.Context(), `
				SELECT count(DISTINCT epoch), count(DISTINCT token >> 32) FROM ledger
				 WHERE resource = 'item/' || $1 AND kind = 'hold'`, item).
				Scan(&epochs, &leaders))
			require.Equal(t, 1, epochs, "an epoch is raised when tokens have not risen")
			require.Equal(t, 2, leaders, "each leader has numbers of his own for his transactions")
			requireNobodyInLine(t, e, item)
		})
	}
}

// requireNobodyInLine looks for nodes that were left behind, long before the sessions of the instances end.
func requireNobodyInLine(t *testing.T, e *servers.Ensemble, item string) {
	t.Helper()
	conn := connect(t, e.Addresses())
	queue := "/fencepost/" + url.PathEscape("item/"+item)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		_, err := conn.Sync(queue)
		require.NoError(c, err)
		line, _, err := conn.Children(queue)
		require.NoError(c, err)
		require.Empty(c, line)
	}, patience, 10*time.Millisecond)
}

// connect returns a client that has nothing to do with the strategy, with its session there.
func connect(t *testing.T, addresses string) *zk.Conn {
	t.Helper()
	conn, _, err := zk.Connect(strings.Split(addresses, ","), patience, zk.WithLogger(silence{}))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	_, err = conn.Sync("/")
	require.NoError(t, err)
	return conn
}

type silence struct{}

func (silence) Printf(string, ...any) {}

// Two of three are killed: requests are answered with a 503 within the wait for a lock, and nothing is written. They come
// back, and the work goes on.
func TestMajorityIsKilled(t *testing.T) {
	const lockWait = 2 * time.Second
	e := ensemble(t)
	running := start(t, 2, "zookeeper", "FENCEPOST_ZOOKEEPER_SERVERS="+e.Addresses(), "FENCEPOST_LOCK_WAIT="+lockWait.String())
	item := createItem(t, running[0].URL)
	crowd := startBuyers(t, urls(running), item)
	crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })
	first, others := leader(t, e)
	for _, m := range []*servers.Server{first, others[0]} {
		require.NoError(t, m.Kill())
	}
	crowd.until(t, "a 503", func(b *buyers) bool {
		return strings.HasPrefix(b.LastProblem["backend_unavailable"], "ZooKeeper is not available. Nothing was written.")
	})
	acknowledged := crowd.stop()
	require.ElementsMatch(t, reservations(t, item), acknowledged, "%v", crowd.Codes)
	for _, instance := range running {
		require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
		began := time.Now()
		require.Equal(t, http.StatusServiceUnavailable, exchange(t.Context(), http.MethodPost,
			instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
		took := time.Since(began)
		t.Logf("with one of three, the 503 came after %s", took)
		require.Less(t, took, lockWait+time.Second)
	}
	require.ElementsMatch(t, reservations(t, item), acknowledged)

	var group sync.WaitGroup
	for _, m := range []*servers.Server{first, others[0]} { // side by side: none is ready without another
		group.Go(func() { assert.NoError(t, m.Start(t.Context())) })
	}
	group.Wait()
	back := time.Now()
	crowd = startBuyers(t, urls(running), item)
	crowd.until(t, "reservations are made again", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })
	took := time.Since(back)
	acknowledged = append(acknowledged, crowd.stop()...)
	t.Logf("50 reservations took %s from when they were back; %v", took, crowd.Codes)
	require.ElementsMatch(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)
	requireNobodyInLine(t, e, item)
}

// locker is a client of the servers, in this process.
func locker(t *testing.T, term time.Duration, servers ...string) *locking.Backend {
	t.Helper()
	backend, err := zklock.Open(servers, "", term, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	return backend
}

func acquire(t *testing.T, backend *locking.Backend) *locking.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lease, err := backend.Locker.Acquire(ctx, domain.ItemKey(uuid.NewString()), domain.GrantID(uuid.New()))
	require.NoError(t, err)
	return lease
}

// A follower without its leader still answers what it knows, and does not know when the leader ends our session. So a holder
// must not take its word for an extension.
func TestFollowerAloneExtendsNothing(t *testing.T) {
	e := ensemble(t)
	first, others := leader(t, e)
	lease := acquire(t, locker(t, patience, others[0].Address))
	reader := connect(t, others[0].Address)
	within := func(limit time.Duration, call func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return call(ctx)
	}
	extend := func(ctx context.Context) error { _, err := lease.Extend(ctx); return err }
	require.NoError(t, within(patience, extend))

	require.NoError(t, first.Pause())
	extended := within(500*time.Millisecond, extend)
	_, _, err := reader.Exists("/fencepost")
	require.NoError(t, first.Resume())
	require.NoError(t, err, "the follower must have answered: otherwise this has shown nothing")
	require.ErrorIs(t, extended, context.DeadlineExceeded)
	require.NoError(t, within(patience, extend), "the lease has survived that")
	require.NoError(t, within(patience, lease.Release))
}

// Whichever member is asked, the ensemble is the same; when its data were wiped it is another one, and its clients, which
// know of more transactions than it does, learn that they hold nothing any more.
func TestEnsembleIdentity(t *testing.T) {
	e := ensemble(t)
	identity := func(b *locking.Backend) (id string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			var err error
			id, err = b.Identify(t.Context())
			require.NoError(c, err)
		}, patience, 10*time.Millisecond)
		return id
	}
	all := locker(t, patience, strings.Split(e.Addresses(), ",")...)
	first := identity(all)
	for _, m := range e.Members {
		require.Equal(t, first, identity(locker(t, patience, m.Address)))
	}
	lease := acquire(t, all)
	for _, m := range e.Members {
		require.NoError(t, m.Kill())
	}
	var group sync.WaitGroup
	for _, m := range e.Members {
		require.NoError(t, os.RemoveAll(filepath.Join(lab.Dir(), m.Name, "version-2")))
		group.Go(func() { assert.NoError(t, m.Start(t.Context())) })
	}
	group.Wait()
	began := time.Now()
	select {
	case <-lease.Gone:
	case <-time.After(patience):
		t.Fatal("the holder has not learned that its session is gone")
	}
	second := identity(all)
	t.Logf("working again after %s", time.Since(began))
	require.NotEqual(t, first, second)
	for _, m := range e.Members {
		require.Equal(t, second, identity(locker(t, patience, m.Address)))
	}
	again := acquire(t, all)
	require.NoError(t, again.Release(t.Context()))
}
