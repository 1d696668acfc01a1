package e2e_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain"
	"fencepost/locking/lockingtest"
	"fencepost/locking/redislock"
	"fencepost/locking/strategies"
)

// client is a client of one Redis, past everything that would lead it to another.
func client(t *testing.T, s *servers.Server) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Address})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func killAll(t *testing.T, processes ...*servers.Server) {
	t.Cleanup(func() {
		for _, p := range processes {
			require.NoError(t, p.Kill())
		}
	})
}

// sentinels starts a master with two replicas and three Sentinels, all of them for this test alone.
func sentinels(t *testing.T) *servers.Sentinels {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := lab.StartSentinels(ctx, "s"+uuid.NewString())
	require.NoError(t, err)
	killAll(t, append(s.Redis, s.Sentinels...)...)
	for _, replica := range s.Redis[1:] {
		requireInSync(t, replica)
	}
	return s
}

func cluster(t *testing.T) *servers.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := lab.StartCluster(ctx, "c"+uuid.NewString())
	require.NoError(t, err)
	killAll(t, c.Nodes...)
	requireInSync(t, c.Nodes[3])
	return c
}

func requireInSync(t *testing.T, replica *servers.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, servers.InSync(ctx, replica))
}

// calls tells how often a server has executed a command, by itself or in a script; "" is never.
func calls(t *testing.T, c *redis.Client, command string) string {
	t.Helper()
	for line := range strings.Lines(c.Info(t.Context(), "commandstats").Val()) {
		if counts, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			number, _, _ := strings.Cut(counts, ",")
			return number
		}
	}
	return ""
}

func cutReplication(t *testing.T, master *servers.Server, replicas ...*servers.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, servers.CutReplication(ctx, master, replicas...))
}

// epochOf is the epoch under which the item was last written.
func epochOf(t *testing.T, item string) (epoch int64) {
	t.Helper()
	require.NoError(t, judge.QueryRow(t.Context(), `SELECT epoch FROM fences WHERE resource = 'item/' || $1`, item).Scan(&epoch))
	return epoch
}

// goesOn waits for a hundred reservations, and returns how long they took.
func goesOn(t *testing.T, crowd *buyers, when string) time.Duration {
	t.Helper()
	began, before := time.Now(), crowd.Count()
	crowd.until(t, "reservations are made "+when, func(b *buyers) bool { return len(b.Acknowledged) >= before+100 })
	return time.Since(began)
}

// The master is killed under load, with its last tokens known to no replica. The replica in its place counts from further back:
// the fence refuses its tokens, the epoch is raised, and the work goes on. Then a master is asked to step down, and lives on as a
// replica that refuses to write.
func TestSentinelFailover(t *testing.T) {
	s := sentinels(t)
	refuses(t, "redis://"+s.Sentinels[0].Address, "it is a Sentinel: write redis+sentinel://HOST:PORT,HOST:PORT/MASTER")
	refuses(t, s.URL+"-is-no-master", "no Sentinel that answers knows a master of this name")
	running := start(t, 2, "redis", "FENCEPOST_REDIS_URL="+s.URL, "FENCEPOST_LOCK_WAIT=2s", "FENCEPOST_LEASE_TTL=1s")
	item := createItem(t, running[0].URL)
	crowd := startBuyers(t, urls(running), item)
	goesOn(t, crowd, "with the first master")

	cutReplication(t, s.Redis[0], s.Redis[1:]...)
	goesOn(t, crowd, "without the replicas")
	before := epochOf(t, item)
	require.NoError(t, s.Redis[0].Kill())
	t.Logf("a hundred reservations after the kill took %s", goesOn(t, crowd, "with the second master"))
	require.Greater(t, epochOf(t, item), before, "the tokens must have gone back: otherwise this has shown nothing")

	for _, replica := range s.Redis[1:] {
		require.NoError(t, client(t, replica).ConfigSet(t.Context(), "masterauth", "").Err())
	}
	sentinel := client(t, s.Sentinels[0])
	// As soon as another replica is fit for it; and again, because Sentinels may give a failover up.
	var second string
	require.Eventually(t, func() bool {
		now := masterOf(t, sentinel) // asked after the order, it can be the third already
		if second != "" && now != second {
			return true
		}
		if sentinel.Do(t.Context(), "sentinel", "failover", servers.SentinelMaster).Err() == nil {
			second = now
		}
		return false
	}, patience, 100*time.Millisecond)
	t.Logf("a hundred reservations with the third master took %s", goesOn(t, crowd, "with the third master"))
	requireAllReady(t, urls(running))

	acknowledged := crowd.stop()
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)
	t.Logf("%d acknowledged, epoch %d, %v", len(acknowledged), epochOf(t, item), crowd.Codes)
}

// masterOf asks a Sentinel who the master is.
func masterOf(t *testing.T, sentinel *redis.Client) string {
	t.Helper()
	address, err := sentinel.Do(t.Context(), "sentinel", "get-master-addr-by-name", servers.SentinelMaster).StringSlice()
	require.NoError(t, err)
	return net.JoinHostPort(address[0], address[1])
}

// A failover hands a lock out twice: its holder has read, is busy, and does not know that the replica has never heard of its
// lock; another instance takes the lock there, and buys the only unit. The fence refuses the first one's write. Without the fence
// the unit is sold twice.
func TestFailoverHandsALockOutTwice(t *testing.T) {
	const review = 7 * time.Second
	s := sentinels(t)
	env := []string{"FENCEPOST_REDIS_URL=" + s.URL, "FENCEPOST_LEASE_TTL=30s"} // renewed after ten seconds, so nobody is warned
	next := start(t, 1, "redis", env...)[0]
	holder := start(t, 1, "redis", append(env, "FENCEPOST_REVIEW_TIME="+review.String())...)[0]
	items, answers := map[string]string{}, map[string]chan problem{}
	for _, fencing := range []string{"enforced", "off"} {
		items[fencing], answers[fencing] = uuid.NewString(), make(chan problem, 1)
		require.Equal(t, http.StatusCreated, exchange(t.Context(), http.MethodPost, next.URL+"/v1/items", map[string]any{
			"sku": items[fencing], "name": t.Name(), "stock": 1, "lock": map[string]any{"fencing": fencing},
		}, nil))
	}
	buy := func(url, fencing string) (answer problem) {
		answer.status = exchange(context.WithoutCancel(t.Context()), http.MethodPost,
			url+"/v1/items/"+items[fencing]+"/reservations", map[string]any{"quantity": 1}, &answer)
		return answer
	}

	cutReplication(t, s.Redis[0], s.Redis[1:]...)
	for fencing := range items {
		go func() { answers[fencing] <- buy(holder.URL, fencing) }()
	}
	first := client(t, s.Redis[0])
	require.Eventually(t, func() bool {
		locks, err := first.Keys(t.Context(), "fencepost:{item/*}:lock").Result()
		return err == nil && len(locks) == len(items)
	}, patience, time.Millisecond)
	require.NoError(t, first.Ping(t.Context()).Err()) // before this was answered, the holder was
	require.NoError(t, s.Redis[0].Kill())
	for fencing := range items {
		require.Eventually(t, func() bool { return buy(next.URL, fencing).status == http.StatusCreated }, patience, 10*time.Millisecond)
	}
	for fencing, answer := range answers {
		require.Empty(t, answer, "%s: the holder must still be busy: otherwise this has shown nothing", fencing)
	}

	refused := <-answers["enforced"]
	t.Logf("the first holder was answered %d %s", refused.status, refused.Code)
	require.NotEqual(t, http.StatusCreated, refused.status)
	require.Len(t, reservations(t, items["enforced"]), 1, "the unit was sold once")
	requireLedgerAgrees(t, "item/"+items["enforced"])

	require.Equal(t, http.StatusCreated, (<-answers["off"]).status)
	require.Len(t, reservations(t, items["off"]), 2, "without the fence the unit must be sold twice")
}

// The master hangs, with its connections open: those who wait there for a lock are woken at the replica in its place.
func TestWaitersFollowTheMaster(t *testing.T) {
	s := sentinels(t)
	env := []string{"FENCEPOST_REDIS_URL=" + s.URL, "FENCEPOST_LEASE_TTL=1m", "FENCEPOST_LOCK_WAIT=14s"}
	holder := start(t, 1, "redis", append(env, "FENCEPOST_REVIEW_TIME=9s")...)[0]
	waiter := start(t, 1, "redis", env...)[0]
	item := createStock(t, waiter.URL, 2)
	buy := func(url string) <-chan int {
		status := make(chan int, 1)
		go func() {
			status <- exchange(context.WithoutCancel(t.Context()), http.MethodPost, url+"/v1/items/"+item+"/reservations",
				map[string]any{"quantity": 1}, nil)
		}()
		return status
	}
	name := "fencepost:{item/" + item + "}:"
	held := buy(holder.URL)
	for _, replica := range s.Redis[1:] {
		c := client(t, replica)
		require.Eventually(t, func() bool { return c.Exists(t.Context(), name+"lock").Val() == 1 }, patience, time.Millisecond)
	}
	waits := buy(waiter.URL)
	// It tries, listens, tries again, and once more when it is heard. Then it sleeps.
	first := client(t, s.Redis[0])
	require.Eventually(t, func() bool { return calls(t, first, "pttl") == "3" }, patience, time.Millisecond)
	require.NoError(t, first.Ping(t.Context()).Err()) // before this was answered, the waiter was
	require.NoError(t, s.Redis[0].Pause())

	require.Equal(t, http.StatusCreated, <-held)
	began := time.Now()
	require.Equal(t, http.StatusCreated, <-waits, "the release was not heard of")
	t.Logf("the waiter was through %s after the holder", time.Since(began))
	require.Len(t, reservations(t, item), 2)
}

// What holds on one Redis holds on a Cluster.
func TestClusterConformance(t *testing.T) {
	for _, variable := range lab.Env() {
		if name, value, _ := strings.Cut(variable, "="); strings.HasSuffix(name, "_URL") {
			t.Setenv(name, value)
		}
	}
	c := cluster(t)
	row, known := strategies.Find("redis")
	require.True(t, known)
	t.Run("suite", func(t *testing.T) {
		config := strategies.Config{RedisURL: c.URL, ZooKeeperServers: zooKeeperServers()} // which the suite switches to and from
		lockingtest.Run(t, row, config, lockingtest.Instance{PoolSize: 8, MaxBatch: 64})
	})
	refuses(t, "redis://"+c.Nodes[0].Address, "it belongs to a Redis Cluster: write redis+cluster://HOST:PORT,HOST:PORT")
	setting := client(t, c.Nodes[2])
	require.NoError(t, setting.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-lru").Err())
	refuses(t, c.URL, "it may evict locks: set its maxmemory-policy to noeviction")
	require.NoError(t, setting.ConfigSet(t.Context(), "maxmemory-policy", "noeviction").Err())
	t.Run("a master that hangs", func(t *testing.T) { testClusterMasterHangs(t, c) })
}

// refuses asks the servers of a URL whether locks can be there.
func refuses(t *testing.T, url, says string) {
	t.Helper()
	backend, err := redislock.Open(url, patience, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	_, err = backend.Identify(t.Context())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.ErrorContains(t, err, says)
}

// What a master does not answer is not sent again: when it goes on it executes what it has received, and a second copy could
// take the lock after it was given back.
func testClusterMasterHangs(t *testing.T, c *servers.Cluster) {
	const term = 4 * time.Second // a quarter of it is the time-out
	backend, err := redislock.Open(c.URL, term, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, backend.Close()) })
	id := func() domain.GrantID { return domain.GrantID(uuid.New()) }
	third := client(t, c.Nodes[2])
	var group errgroup.Group
	for range 8 { // as many connections, so that there is one for each further try
		group.Go(func() error {
			lease, err := backend.Locker.Acquire(t.Context(), domain.ItemKey(skuOf(t, third, 2)), id())
			if err != nil {
				return err
			}
			return lease.Release(t.Context())
		})
	}
	require.NoError(t, group.Wait())
	require.NoError(t, third.ConfigResetStat(t.Context()).Err())

	require.NoError(t, c.Nodes[2].Pause())
	began := time.Now()
	_, err = backend.Locker.Acquire(t.Context(), domain.ItemKey(skuOf(t, client(t, c.Nodes[0]), 2)), id())
	took := time.Since(began)
	require.NoError(t, c.Nodes[2].Resume())
	require.ErrorIs(t, err, domain.ErrUnavailable)
	require.Less(t, took, term/2)
	require.Eventually(t, func() bool { return calls(t, third, "set") != "" }, patience, 10*time.Millisecond)
	require.NoError(t, third.Ping(t.Context()).Err()) // everything that was received before this has been executed
	require.Equal(t, "1", calls(t, third, "set"))
}

// skuOf invents an item that belongs to one of the three masters. Any node can tell.
func skuOf(t *testing.T, node *redis.Client, master int64) string {
	t.Helper()
	for {
		sku := uuid.NewString()
		slot, err := node.ClusterKeySlot(t.Context(), "item/"+sku).Result()
		require.NoError(t, err)
		if slot*3/16384 == master && (slot+1)*3/16384 == master { // not at the edge
			return sku
		}
	}
}

// The keys of an item move to another master under load, and then that master's keys are taken over by its replica: nothing that
// was acknowledged is lost, and the work goes on.
func TestClusterMovesUnderLoad(t *testing.T) {
	c := cluster(t)
	running := start(t, 2, "redis", "FENCEPOST_REDIS_URL="+c.URL, "FENCEPOST_LOCK_WAIT=2s", "FENCEPOST_LEASE_TTL=1s")
	replicated, other := client(t, c.Nodes[0]), client(t, c.Nodes[1])
	item := skuOf(t, replicated, 1)
	slot := replicated.ClusterKeySlot(t.Context(), "item/"+item).Val()
	require.Equal(t, http.StatusCreated, exchange(t.Context(), http.MethodPost, running[0].URL+"/v1/items",
		map[string]any{"sku": item, "name": t.Name(), "stock": 1_000_000}, nil))
	crowd := startBuyers(t, urls(running), item)
	goesOn(t, crowd, "before anything moves")

	before := epochOf(t, item)
	// Half way, neither master runs a script for a lock that is free, because it does not exist in either place.
	to, from := replicated.ClusterMyID(t.Context()).Val(), other.ClusterMyID(t.Context()).Val()
	require.NoError(t, replicated.Do(t.Context(), "cluster", "setslot", slot, "importing", from).Err())
	require.NoError(t, other.Do(t.Context(), "cluster", "setslot", slot, "migrating", to).Err())
	host, port, err := net.SplitHostPort(c.Nodes[0].Address)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		keys, err := other.ClusterGetKeysInSlot(t.Context(), int(slot), 100).Result()
		require.NoError(t, err)
		for _, key := range keys {
			require.NoError(t, other.Migrate(t.Context(), host, port, key, 0, patience).Err())
		}
		return len(keys) == 0
	}, patience, time.Millisecond)
	crowd.until(t, "a 503", func(b *buyers) bool {
		return strings.HasPrefix(b.LastProblem["backend_unavailable"], "Redis is not available. Nothing was written.")
	})
	for _, node := range []*redis.Client{replicated, other, client(t, c.Nodes[2])} {
		require.NoError(t, node.Do(t.Context(), "cluster", "setslot", slot, "node", to).Err())
	}
	goesOn(t, crowd, "at the other master")
	require.Equal(t, before, epochOf(t, item), "a move loses no token")

	cutReplication(t, c.Nodes[0], c.Nodes[3])
	goesOn(t, crowd, "without the replica")
	require.NoError(t, c.Nodes[0].Kill())
	t.Logf("a hundred reservations after the kill took %s", goesOn(t, crowd, "with the replica as master"))
	require.Greater(t, epochOf(t, item), before, "the tokens must have gone back: otherwise this has shown nothing")
	requireAllReady(t, urls(running))

	acknowledged := crowd.stop()
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)
	t.Logf("%d acknowledged, %v", len(acknowledged), crowd.Codes)
}

// zooKeeperServers is the laboratory's own ZooKeeper.
func zooKeeperServers() []string {
	for _, variable := range lab.Env() {
		if servers, ok := strings.CutPrefix(variable, "FENCEPOST_ZOOKEEPER_SERVERS="); ok {
			return strings.Split(servers, ",")
		}
	}
	return nil
}
