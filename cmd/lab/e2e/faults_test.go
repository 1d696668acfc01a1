package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
)

// soak makes of some tests what takes too long for every day.
var soak = flag.Bool("soak", false, "run the long forms of the tests that have one")

// Redis servers that forget everything, locks and counters, in the middle of the load: their tokens start again at 1, the fence
// refuses them, the epoch is raised, and the work goes on. In its long form they do so every second, for twenty seconds.
func TestRedisForgets(t *testing.T) {
	all := redlockClients(t)
	for strategy, clients := range map[string][]*redis.Client{"redis": all[:1], "redlock": all} {
		t.Run(strategy, func(t *testing.T) { testRedisForgets(t, strategy, clients) })
	}
}

func testRedisForgets(t *testing.T, strategy string, clients []*redis.Client) {
	flushes, pace := 10, time.Duration(0)
	if *soak {
		flushes, pace = 20, time.Second
	}
	running := start(t, 2, strategy)
	item := createItem(t, running[0].URL)
	crowd := startBuyers(t, urls(running), item)
	crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 100 })
	races := startRaces(t, running)
	var longest time.Duration
	for range flushes {
		next := time.After(pace)
		var group errgroup.Group
		for _, c := range clients {
			group.Go(func() error { return c.FlushAll(t.Context()).Err() })
		}
		require.NoError(t, group.Wait())
		began, before := time.Now(), crowd.Count()
		crowd.until(t, "a reservation that began after that", func(b *buyers) bool { return len(b.Acknowledged) > before+crowdSize })
		longest = max(longest, time.Since(began))
		crowd.until(t, "the tokens have risen above the fence, or the epoch has", func(b *buyers) bool { return len(b.Acknowledged) >= before+50 })
		<-next
	}
	raced := races()
	requireAllReady(t, urls(running)) // an authority that is healed is in charge
	acknowledged := crowd.stop()
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)

	var epoch, refusals int64
	require.NoError(t, judge.QueryRow(t.Context(), `
		SELECT epoch, (SELECT count(*) FROM refusals WHERE resource = f.resource) FROM fences f WHERE resource = 'item/' || $1`, item).
		Scan(&epoch, &refusals))
	t.Logf("%d flushes: %d reservations acknowledged; epoch %d, %d refusals, at most %s to a reservation that began after a flush; %v; %s",
		flushes, len(acknowledged), epoch, refusals, longest, crowd.Codes, raced)
	require.Greater(t, epoch, int64(1), "the tokens must have gone back at least once: otherwise this has shown nothing")
	if *soak {
		require.Less(t, longest, time.Second)
	}
}

// startRaces has buyers race for scarce items, one after the other. stop ends it and tells how many there were; none of them
// must have been sold more often than there were units.
func startRaces(t *testing.T, running []*instances.Instance) (stop func() string) {
	t.Helper()
	over := make(chan struct{})
	var group errgroup.Group
	var races, sold int64
	group.Go(func() error {
		for {
			select {
			case <-over:
				return nil
			default:
			}
			report, err := load.Run(context.WithoutCancel(t.Context()),
				load.Options{Instances: urls(running), Limit: 20, Buyers: 8, Requests: 60, Timeout: patience})
			if err == nil && !report.OK {
				err = fmt.Errorf("%+v", report)
			}
			if err != nil {
				return err
			}
			races++
			sold += report.Sold + report.Held
		}
	})
	end := sync.OnceFunc(func() { close(over) })
	t.Cleanup(func() { end(); _ = group.Wait() })
	return func() string {
		t.Helper()
		end()
		require.NoError(t, group.Wait())
		require.Positive(t, races)
		return fmt.Sprintf("%d races for 20 units: %d sold, 0 oversold", races, sold)
	}
}

// zookeeperData asks ZooKeeper where it keeps what it knows.
func zookeeperData(t *testing.T) (dir string) {
	t.Helper()
	conn, err := net.Dial("tcp", variable(t, "FENCEPOST_ZOOKEEPER_SERVERS"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "conf")
	require.NoError(t, err)
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	for line := range strings.Lines(string(answer)) {
		if dir, ok := strings.CutPrefix(strings.TrimSpace(line), "dataDir="); ok {
			return dir
		}
	}
	t.Fatal("the laboratory has no ZooKeeper that says where its data are")
	return ""
}

// A ZooKeeper that was set up anew, at the same address: it refuses clients that know more than it does, knows none of their
// sessions, and its transactions count from 1 again. The clients begin anew, the epoch is raised, and the work goes on.
func TestZooKeeperForgets(t *testing.T) {
	running := start(t, 2, "zookeeper")
	item := createItem(t, running[0].URL)
	crowd := startBuyers(t, urls(running), item)
	crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 100 })
	data := zookeeperData(t)
	require.True(t, strings.HasPrefix(data, lab.Dir()+"/"), "only the laboratory's own data may be wiped, not %s", data)
	require.NoError(t, lab.Server("zookeeper").Stop(t.Context()))
	require.NoError(t, os.RemoveAll(data))
	require.NoError(t, lab.Server("zookeeper").Start(t.Context()))
	back, before := time.Now(), crowd.Count()
	crowd.until(t, "a reservation is made again", func(b *buyers) bool { return len(b.Acknowledged) > before })
	took := time.Since(back)
	crowd.until(t, "both instances are at work", func(b *buyers) bool { return len(b.Acknowledged) >= before+100 })
	requireAllReady(t, urls(running)) // an authority that is healed is in charge
	acknowledged := crowd.stop()
	require.Subset(t, reservations(t, item), acknowledged)
	requireLedgerAgrees(t, "item/"+item)

	epoch := epochOf(t, item)
	t.Logf("%d reservations acknowledged; epoch %d, %s to the next reservation; %v", len(acknowledged), epoch, took, crowd.Codes)
	require.Greater(t, epoch, int64(1), "the tokens must have gone back: otherwise this has shown nothing")
}

// holding starts an instance that reserves the item and returns when it is in the middle of it: it has the lock, has presented
// and has read, and its write is still to come. over is closed when the request has been answered, with the answer in it.
func holding(t *testing.T, strategy, item string, review time.Duration) (holder *instances.Instance, over <-chan struct{}, answer *problem) {
	t.Helper()
	holder = start(t, 1, strategy, "FENCEPOST_LEASE_TTL=2s", "FENCEPOST_REVIEW_TIME="+review.String())[0]
	over, answer = reserveAside(t, holder, item)
	// Under a lease, the presentation is committed; under a row lock there is a transaction that has written to the fence.
	require.Eventually(t, func() bool {
		var presented bool
		require.NoError(t, judge.QueryRow(t.Context(), `
			SELECT EXISTS (SELECT FROM fences WHERE resource = 'item/' || $1 AND token > 0)
			    OR EXISTS (SELECT FROM pg_locks WHERE relation = 'fences'::regclass AND mode = 'RowExclusiveLock')`, item).Scan(&presented))
		return presented
	}, patience, time.Millisecond)
	return holder, over, answer
}

// reserveAside asks for one unit. over is closed when the request has been answered, with the answer in it.
func reserveAside(t *testing.T, instance *instances.Instance, item string) (over <-chan struct{}, answer *problem) {
	t.Helper()
	done, answer := make(chan struct{}), new(problem)
	go func() {
		defer close(done)
		answer.status = exchange(context.WithoutCancel(t.Context()), http.MethodPost,
			instance.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, answer)
	}()
	return done, answer
}

type problem struct {
	status       int
	Code, Detail string
}

// The holder is killed with the lock in its hands: the next waiter gets in when the term ends, and not much later. Under a
// row lock it need not wait at all, because the connection has gone as well.
func TestHolderIsKilled(t *testing.T) {
	next := start(t, 1, "postgres")[0]
	for _, strategy := range fencing(t, next.URL) {
		t.Run(strategy, func(t *testing.T) {
			next := start(t, 1, strategy, "FENCEPOST_LEASE_TTL=2s")[0]
			item := createItem(t, next.URL)
			holder, over, _ := holding(t, strategy, item, 4*time.Second)
			require.NoError(t, holder.Kill())
			<-over

			began := time.Now()
			require.Equal(t, http.StatusCreated, exchange(t.Context(), http.MethodPost,
				next.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil))
			took := time.Since(began)
			t.Logf("%s: the next waiter was through after %s", strategy, took)
			limit := 2*time.Second + time.Second
			if strategy == "postgres" {
				limit = time.Second
			}
			require.Less(t, took, limit)
			require.Len(t, reservations(t, item), 1)
		})
	}
}

// The holder is stopped for longer than its term, between its read and its write, and another instance sells the same unit.
// When the holder goes on, its write does not land, and it says that nothing was written.
func TestHolderIsPaused(t *testing.T) {
	next := start(t, 1, "postgres")[0]
	for _, strategy := range fencing(t, next.URL) {
		t.Run(strategy, func(t *testing.T) {
			next := start(t, 1, strategy, "FENCEPOST_LEASE_TTL=2s", "FENCEPOST_LOCK_WAIT=12s")[0]
			item := createStock(t, next.URL, 1)
			holder, over, answer := holding(t, strategy, item, time.Second)
			require.NoError(t, holder.Pause())
			require.Equal(t, http.StatusCreated, exchange(t.Context(), http.MethodPost,
				next.URL+"/v1/items/"+item+"/reservations", map[string]any{"quantity": 1}, nil), "the lease ends, or PostgreSQL ends the transaction")
			require.NoError(t, holder.Resume())
			<-over
			t.Logf("%s: the paused holder was answered %d %s", strategy, answer.status, answer.Code)
			require.Contains(t, []string{"stale_fencing_token", "lock_lost", "backend_unavailable"}, answer.Code)
			require.Contains(t, answer.Detail, "Nothing was written.")
			require.Len(t, reservations(t, item), 1, "the unit was sold once")
			requireLedgerAgrees(t, "item/"+item)
		})
	}
}
