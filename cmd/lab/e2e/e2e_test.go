package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/cmd/lab/internal/shop"
)

// patience bounds every wait. It is never waited for when all is well.
const patience = 30 * time.Second

// The tests share one laboratory, with the program built and the schema migrated, and run one after the other: one of them
// stops its servers.
var (
	lab     *servers.Lab
	binary  string
	answers *contract
	judge   *pgxpool.Pool // of the owner: it looks past the service
)

func TestMain(m *testing.M) {
	servers.RunJanitor()
	os.Exit(func() int {
		var err error
		// RedisAppendOnly: a Redis that is stopped here is to come back with what it knew.
		lab, err = servers.Start(context.Background(), servers.Options{
			Require:         []string{servers.Postgres, servers.Redis, servers.ZooKeeper},
			RedisAppendOnly: true,
		})
		if err == nil {
			defer lab.Close()
			binary, err = instances.Build(context.Background(), lab)
		}
		if err == nil {
			err = instances.Migrate(context.Background(), lab, binary)
		}
		if err == nil {
			answers, err = newContract()
		}
		if err == nil {
			judge, err = pgxpool.New(context.Background(), databases.Of(lab).Owner)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer judge.Close()
		transport := http.DefaultTransport.(*http.Transport)
		transport.MaxIdleConnsPerHost = 100 // of net/http's two, most requests of many buyers would have to dial
		http.DefaultClient.Transport = answers.watch(transport)
		code := m.Run()
		if err := answers.verdict(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// start runs n instances with the strategy for everything, until the test ends.
func start(t *testing.T, n int, strategy string, env ...string) []*instances.Instance {
	t.Helper()
	return startLogging(t, nil, n, strategy, env...)
}

// startLogging is start, with the logs in a file; nil stands for one in the laboratory's folder.
func startLogging(t *testing.T, log *os.File, n int, strategy string, env ...string) []*instances.Instance {
	t.Helper()
	addresses := make([]string, n)
	for i := range addresses {
		var err error
		addresses[i], err = lab.FreeAddress()
		require.NoError(t, err)
	}
	running, err := instances.Start(t.Context(), lab, instances.Config{
		Binary:    binary,
		Addresses: addresses,
		Output:    log,
		Env: append([]string{
			"FENCEPOST_INVENTORY_LOCK=" + strategy,
			"FENCEPOST_COUPON_LOCK=" + strategy,
			"FENCEPOST_DRAIN_DELAY=0s",
			"FENCEPOST_DATABASE_CONNS=4", // enough to meet in PostgreSQL; each costs it a tenth of a second of a processor
		}, env...),
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections() // net/http waits five seconds for one that was never used
		require.NoError(t, instances.Stop(context.WithoutCancel(t.Context()), running))
	})
	return running
}

func urls(running []*instances.Instance) []string {
	list := make([]string, len(running))
	for i, instance := range running {
		list[i] = instance.URL
	}
	return list
}

// variable is what the laboratory tells an instance of its servers.
func variable(t *testing.T, name string) string {
	t.Helper()
	value := lab.Variable(name)
	require.NotEmpty(t, value, "the laboratory does not set %s", name)
	return value
}

// 64 buyers, three instances, a hundred units: exactly a hundred are sold, and a single-use coupon is redeemed once.
// Without a lock the same race sells more than there is, and so it does with a mutex in each of several processes.
func TestRace(t *testing.T) {
	for _, strategy := range []string{"postgres", "redis", "redlock", "zookeeper"} {
		t.Run(strategy, func(t *testing.T) {
			running := start(t, 3, strategy)
			race := load.Options{Instances: urls(running), Limit: 100, Buyers: 64, Requests: 300, Timeout: patience}
			report, err := load.Run(t.Context(), race)
			require.NoError(t, err)
			t.Logf("%s: %s; %.0f/s, p50 %.1f ms, p99 %.1f ms", strategy, report.Verdict, report.PerSecond, report.Latency.P50, report.Latency.P99)
			require.True(t, report.OK, "%+v", report)
			require.Equal(t, strategy, report.Strategy)
			require.Equal(t, "enforced", report.Fencing)
			require.Equal(t, map[string]int{"created": 100, "out_of_stock": 200}, report.Outcomes)
			for _, instance := range report.Instances {
				require.NotEmpty(t, instance.Outcomes, "every instance has taken part")
			}
			requireLedgerAgrees(t, report.Resource)

			race.Coupon, race.Limit = true, 1
			report, err = load.Run(t.Context(), race)
			require.NoError(t, err)
			require.True(t, report.OK, "%+v", report)
			require.Equal(t, map[string]int{"created": 1, "coupon_exhausted": 299}, report.Outcomes)
			requireLedgerAgrees(t, report.Resource)
		})
	}
	for _, control := range []struct {
		strategy  string
		instances int
		oversells bool
	}{{"none", 3, true}, {"none", 1, true}, {"local", 3, true}, {"local", 1, false}} {
		t.Run(fmt.Sprintf("%s, %d instances", control.strategy, control.instances), func(t *testing.T) {
			running := start(t, control.instances, control.strategy, "FENCEPOST_FENCING=off")
			report, err := load.Run(t.Context(), load.Options{
				Instances: urls(running), Limit: 100, Buyers: 64, Requests: 400, Timeout: patience,
			})
			require.NoError(t, err)
			t.Log(report.Verdict)
			if !control.oversells {
				require.True(t, report.OK, "a mutex is enough for one process: %+v", report)
				require.Equal(t, 100, report.Outcomes["created"])
				return
			}
			require.Greater(t, report.Outcomes["created"], 100, "more must be sold than there is: %+v", report)
			require.Positive(t, report.Oversold)
			require.False(t, report.OK)
		})
	}
}

// requireLedgerAgrees compares, with SQL of its own, the ledger with the counters and with what was given out.
func requireLedgerAgrees(t *testing.T, resource string) {
	t.Helper()
	var counters, ledger, given, unstamped int64
	require.NoError(t, judge.QueryRow(t.Context(), `
		SELECT COALESCE((SELECT reserved + sold FROM items WHERE resource = $1), (SELECT redeemed FROM coupons WHERE resource = $1)),
		       (SELECT sum(reserved_delta + sold_delta + redeemed_delta) FROM ledger WHERE resource = $1),
		       COALESCE((SELECT sum(quantity) FROM reservation_lines WHERE resource = $1 AND state IN ('held', 'confirmed')), 0)
		     + (SELECT count(*) FROM redemptions WHERE resource = $1 AND state = 'redeemed'),
		       (SELECT count(*) FROM ledger WHERE resource = $1 AND token IS NULL)`, resource).
		Scan(&counters, &ledger, &given, &unstamped))
	require.Equal(t, counters, ledger)
	require.Equal(t, counters, given)
	require.Zero(t, unstamped, "every change carries its token")
}

// requireAuditClean asks the service's own audit, which looks at more: the story of every reservation, and the order of tokens.
func requireAuditClean(t *testing.T, url, resource string) {
	t.Helper()
	var audit struct {
		OK        bool             `json:"ok"`
		Resources []map[string]any `json:"resources"`
	}
	require.Equal(t, http.StatusOK, exchange(t.Context(), http.MethodGet, url+"/v1/audit?resource="+resource, nil, &audit))
	require.Len(t, audit.Resources, 1)
	require.True(t, audit.OK, audit.Resources)
}

// A server that is stopped under load is answered with a 503 that names it; when it is back, so is the service, by itself,
// and everything that was acknowledged is there.
func TestServersStopAndComeBack(t *testing.T) {
	for strategy, server := range map[string]struct{ name, title string }{
		"postgres":  {"postgres", "PostgreSQL"},
		"redis":     {"redis-1", "Redis"},
		"zookeeper": {"zookeeper", "ZooKeeper"},
	} {
		t.Run(server.title, func(t *testing.T) {
			running := start(t, 2, strategy, "FENCEPOST_LOCK_WAIT=2s")
			item := createItem(t, running[0].URL)
			crowd := startBuyers(t, urls(running), item)
			crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 20 })

			require.NoError(t, lab.Server(server.name).Stop(t.Context()))
			crowd.until(t, "a 503 that names "+server.title, func(b *buyers) bool {
				return strings.HasPrefix(b.LastProblem["backend_unavailable"], server.title+" is not available. Nothing was written.")
			})
			for _, instance := range running {
				require.Equal(t, http.StatusOK, statusOf(t, instance.URL+"/healthz"), "the process itself is well")
				require.Equal(t, http.StatusServiceUnavailable, statusOf(t, instance.URL+"/readyz"))
			}

			require.NoError(t, lab.Server(server.name).Start(t.Context()))
			back := crowd.Count()
			crowd.until(t, "reservations are made again", func(b *buyers) bool { return len(b.Acknowledged) >= back+20 })
			acknowledged := crowd.stop()
			requireAllReady(t, urls(running)) // the other instance may find the server a moment later
			require.Subset(t, reservations(t, item), acknowledged, "everything that was acknowledged is stored")
			t.Logf("%s: %d reservations acknowledged; %v", server.title, len(acknowledged), crowd.Codes)
		})
	}
	// No strategy of these instances uses ZooKeeper: it may go without anybody noticing.
	t.Run("ZooKeeper that nobody uses", func(t *testing.T) {
		running := start(t, 1, "postgres")
		item := createItem(t, running[0].URL)
		require.NoError(t, lab.Server("zookeeper").Stop(t.Context()))
		crowd := startBuyers(t, urls(running), item)
		crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 20 })
		crowd.stop()
		require.Equal(t, map[string]int{"created": len(crowd.Acknowledged)}, crowd.Codes)
		require.NoError(t, lab.Server("zookeeper").Start(t.Context()))
	})
}

// An instance that is told to end finishes what it has begun: what it has written, it has acknowledged.
func TestShutdownFinishesWhatItBegan(t *testing.T) {
	running := start(t, 1, "redis")
	item := createItem(t, running[0].URL)
	crowd := startBuyers(t, urls(running), item)
	crowd.until(t, "reservations are made", func(b *buyers) bool { return len(b.Acknowledged) >= 50 })
	require.NoError(t, instances.Stop(t.Context(), running))
	require.ElementsMatch(t, reservations(t, item), crowd.stop())
}

// What is wrong at the start is said in one line that names the server and the fix.
func TestStartErrors(t *testing.T) {
	for name, test := range map[string]struct {
		env  []string
		says []string
	}{
		"PostgreSQL is not there": {
			[]string{"FENCEPOST_DATABASE_URL=postgres://fencepost_service:topsecret@127.0.0.1:1/fencepost"},
			[]string{"PostgreSQL at 127.0.0.1:1/fencepost does not answer", "start it or correct FENCEPOST_DATABASE_URL"},
		},
		"Redis is not there, and in charge": {
			[]string{"FENCEPOST_REDIS_URL=redis://:topsecret@127.0.0.1:1/0", "FENCEPOST_INVENTORY_LOCK=redis"},
			[]string{"Redis at 127.0.0.1:1", "does not answer", "start it or correct FENCEPOST_REDIS_URL"},
		},
		"a strategy that does not exist": {
			[]string{"FENCEPOST_INVENTORY_LOCK=magic"},
			[]string{`FENCEPOST_INVENTORY_LOCK is "magic"`, "none, local, postgres, redis, redlock"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, "serve")
			cmd.Env = append(append(os.Environ(), lab.Env()...), append([]string{"FENCEPOST_LISTEN=127.0.0.1:0"}, test.env...)...)
			output, err := cmd.CombinedOutput()
			require.Error(t, err)
			require.NoError(t, ctx.Err(), "it must not hang")
			lines := strings.Split(strings.TrimSpace(string(output)), "\n")
			for _, text := range test.says {
				require.Contains(t, lines[len(lines)-1], text)
			}
			require.NotContains(t, string(output), "topsecret")
		})
	}
	// A start that fails takes nothing over: who is running goes on, although one of the two scopes could have been claimed.
	before := start(t, 1, "redis")[0]
	serve := exec.CommandContext(t.Context(), binary, "serve")
	serve.Env = append(append(os.Environ(), lab.Env()...), "FENCEPOST_LISTEN=127.0.0.1:0",
		"FENCEPOST_INVENTORY_LOCK=postgres", "FENCEPOST_COUPON_LOCK=redis", "FENCEPOST_REDIS_URL=redis://127.0.0.1:1/0")
	require.Error(t, serve.Run())
	require.Equal(t, http.StatusOK, statusOf(t, before.URL+"/readyz"))

	// Redis that is not in charge may be missing: the strategy is shown as not available.
	running := start(t, 1, "postgres", "FENCEPOST_REDIS_URL=redis://127.0.0.1:1/0")
	var answer struct {
		Strategies []struct {
			Name, Problem string
			Available     bool
		}
	}
	require.Equal(t, http.StatusOK, exchange(t.Context(), http.MethodGet, running[0].URL+"/v1/strategies", nil, &answer))
	for _, strategy := range answer.Strategies {
		require.Equal(t, strategy.Name != "redis", strategy.Available, "%+v", strategy)
	}
}

func createItem(t *testing.T, url string) (sku string) {
	t.Helper()
	return createStock(t, url, 1_000_000)
}

func createStock(t *testing.T, url string, stock int) (sku string) {
	t.Helper()
	sku = uuid.NewString()
	status := exchange(t.Context(), http.MethodPost, url+"/v1/items", map[string]any{"sku": sku, "name": t.Name(), "stock": stock}, nil)
	require.Equal(t, http.StatusCreated, status)
	return sku
}

func statusOf(t *testing.T, url string) int {
	t.Helper()
	return exchange(t.Context(), http.MethodGet, url, nil, nil)
}

// requireAllReady waits for every instance: that one of them sells says nothing of the others. One that is superseded would never
// be ready.
func requireAllReady(t *testing.T, urls []string) {
	t.Helper()
	for _, url := range urls {
		require.Eventually(t, func() bool { return statusOf(t, url+"/readyz") == http.StatusOK }, patience, 10*time.Millisecond, url)
	}
}

// exchange returns the status, 0 if there was no answer, and reads the answer into out.
func exchange(ctx context.Context, method, url string, in, out any) int {
	return shop.Exchange(ctx, method, url, in, out).Status
}

// reservations lists what the database knows of the item.
func reservations(t *testing.T, sku string) []string {
	t.Helper()
	rows, _ := judge.Query(t.Context(),
		`SELECT 'rsv_' || reservation FROM reservation_lines WHERE resource = 'item/' || $1`, sku)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return ids
}

// buyers reserve one unit after the other until they are stopped, and remember what they were promised.
type buyers struct{ *shop.Crowd }

// crowdSize is how many buyers there are: so many answers may be on their way at any moment.
const crowdSize = 8

func startBuyers(t *testing.T, urls []string, sku string) *buyers {
	t.Helper()
	b := &buyers{shop.StartCrowd(context.WithoutCancel(t.Context()), crowdSize, urls, sku)}
	t.Cleanup(b.Stop)
	return b
}

// until waits for the answers to show something.
func (b *buyers) until(t *testing.T, what string, seen func(*buyers) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("within %s not seen: %s", patience, what))
	defer cancel()
	require.NoError(t, b.Until(ctx, func() bool { return seen(b) }))
}

// stop lets every buyer receive its last answer, and returns what was acknowledged.
func (b *buyers) stop() []string {
	b.Stop()
	return b.Acknowledged
}
