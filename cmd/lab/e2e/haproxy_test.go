package e2e_test

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
)

// balancer is HAProxy before three instances, with the configuration that is shipped, or one that was made worse.
type balancer struct {
	URL   string
	stats string
	*servers.Process
}

const haproxyFile = "../../../deploy/haproxy.cfg"

// startBalancer runs the shipped file as it stands, unless worse replaces a line of it by another: old, new, old, new, …
func startBalancer(t *testing.T, running []*instances.Instance, worse ...string) *balancer {
	t.Helper()
	file, err := filepath.Abs(haproxyFile)
	require.NoError(t, err)
	if worse != nil {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for i := 0; i < len(worse); i += 2 {
			require.Equal(t, 1, strings.Count(string(text), worse[i]), worse[i])
		}
		file = filepath.Join(t.TempDir(), "haproxy.cfg")
		require.NoError(t, os.WriteFile(file, []byte(strings.NewReplacer(worse...).Replace(string(text))), 0o600))
	}
	address, err := lab.FreeAddress()
	require.NoError(t, err)
	stats, err := lab.FreeAddress()
	require.NoError(t, err)
	env := append(os.Environ(), "FENCEPOST_BIND="+address, "FENCEPOST_STATS="+stats)
	for i, instance := range running {
		env = append(env, "FENCEPOST_"+string(rune('1'+i))+"="+strings.TrimPrefix(instance.URL, "http://"))
	}
	b := &balancer{URL: "http://" + address, stats: "http://" + stats}
	b.Process, err = lab.Launch(t.Context(), servers.Command{
		Name: "haproxy", Path: program("haproxy"), Args: []string{"-db", "-f", file}, Env: env,
		Ready: func(ctx context.Context) error {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/readyz", nil)
			if err != nil {
				return err
			}
			response, err := alone.RoundTrip(request)
			if err == nil {
				err = response.Body.Close()
			}
			return err
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Stop(context.WithoutCancel(t.Context()))) })
	return b
}

// program finds one that Debian puts where an ordinary user's PATH does not lead.
func program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return "/usr/sbin/" + name
}

// alone has a connection for each request. On a kept one HAProxy says that a request was lost by hanging up.
var alone = &http.Transport{DisableKeepAlives: true}

// status is what HAProxy thinks of an instance: UP or DOWN.
func (b *balancer) status(t *testing.T, name string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.stats+"/;csv", nil)
	require.NoError(t, err)
	response, err := alone.RoundTrip(request)
	require.NoError(t, err)
	defer response.Body.Close()
	rows, err := csv.NewReader(response.Body).ReadAll()
	require.NoError(t, err)
	for _, row := range rows {
		if row[0] == "instances" && row[1] == name {
			return row[slices.Index(rows[0], "status")]
		}
	}
	t.Fatalf("HAProxy knows of no %s", name)
	return ""
}

// One of three instances is killed under load, and then another one is told to end. Clients notice the requests that were on
// their way when the first was killed, and nothing else. They settle those by sending them again with their keys.
func TestBalancer(t *testing.T) {
	for name, test := range map[string]struct {
		kill    bool
		worse   []string
		harmful bool
	}{
		"as shipped":                {kill: true},
		"without another instance":  {kill: true, worse: []string{"option redispatch 1", "no option redispatch"}, harmful: true},
		"drained, and no retries":   {worse: []string{"retries 3", "retries 0"}},
		"drained, and nobody looks": {worse: []string{"retries 3", "retries 0", "uri /readyz", "uri /healthz"}, harmful: true},
	} {
		t.Run(name, func(t *testing.T) {
			running := start(t, 3, "postgres", "FENCEPOST_DRAIN_DELAY=1s") // the default
			item := createItem(t, running[2].URL)
			b := startBalancer(t, running, test.worse...)
			q := b.startQueue(t, item)
			q.another(t, 200)
			var killed time.Time
			if test.kill {
				require.NoError(t, running[0].Kill())
				killed = time.Now()
				q.another(t, 200)
			}
			require.NoError(t, instances.Stop(t.Context(), running[1:2]))
			q.another(t, 200)
			q.stop()

			lost, beyond := 0, map[int]int{}
			for _, f := range q.failed {
				if f.sent.Before(killed) && (f.status == 0 || f.status == http.StatusBadGateway) {
					lost++
				} else {
					beyond[f.status]++
				}
			}
			t.Logf("%d reservations; lost with the killed instance: %d; other failures by status: %v", len(q.acknowledged), lost, beyond)
			require.ElementsMatch(t, q.acknowledged, reservations(t, item), "each request has happened once")
			requireLedgerAgrees(t, "item/"+item)
			if test.harmful {
				require.Positive(t, beyond[http.StatusServiceUnavailable], "clients must notice")
				return
			}
			require.Empty(t, beyond)
			require.Equal(t, test.kill, lost > 0, "the kill must have hit a request: otherwise this has shown nothing")
			require.LessOrEqual(t, lost, queueLength)
		})
	}
}

// queue is buyers behind the balancer who reserve one unit after the other, each with a key, and send a request again until they
// are told that it was made.
type queue struct {
	acknowledged []string
	failed       []post

	mu       sync.Mutex
	progress chan struct{}
	stop     func()
}

const queueLength = 24

func (b *balancer) startQueue(t *testing.T, item string) *queue {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	transport := &http.Transport{MaxIdleConnsPerHost: queueLength}
	q := &queue{progress: make(chan struct{}, 1)}
	var buyers sync.WaitGroup
	for range queueLength {
		buyers.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				key := uuid.NewString()
				p := b.reserve(t, transport, item, key)
				for p.status != http.StatusCreated && !t.Failed() {
					q.mu.Lock()
					q.failed = append(q.failed, p)
					q.mu.Unlock()
					p = b.reserve(t, transport, item, key)
				}
				q.mu.Lock()
				q.acknowledged = append(q.acknowledged, p.ID)
				q.mu.Unlock()
				select {
				case q.progress <- struct{}{}:
				default:
				}
			}
		})
	}
	q.stop = sync.OnceFunc(func() {
		cancel()
		buyers.Wait()
		transport.CloseIdleConnections()
	})
	t.Cleanup(q.stop)
	return q
}

// another returns when n more reservations have been made.
func (q *queue) another(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.acknowledged)
	}
	for goal := count() + n; count() < goal; {
		await(t, "another reservation", q.progress)
	}
}

// An instance that lives and cannot serve, because another lock strategy has been put in charge, is left alone.
func TestBalancerAsksForReadiness(t *testing.T) {
	for name, test := range map[string]struct {
		worse []string
		alone bool
	}{
		"as shipped":            {nil, true},
		"looking for life only": {[]string{"uri /readyz", "uri /healthz"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			running := append(start(t, 2, "postgres"), start(t, 1, "redis")...)
			b := startBalancer(t, running, test.worse...)
			if test.alone {
				for _, name := range []string{"fencepost-1", "fencepost-2"} {
					require.Eventually(t, func() bool { return b.status(t, name) == "DOWN" }, patience, time.Millisecond)
				}
			}
			q := b.startQueue(t, createItem(t, running[2].URL))
			q.another(t, 200)
			q.stop()
			superseded := 0
			for _, f := range q.failed {
				require.Equal(t, "strategy_superseded", f.Code)
				superseded++
			}
			t.Logf("%d made, %d refused", len(q.acknowledged), superseded)
			require.Equal(t, test.alone, superseded == 0)
		})
	}
}

// An instance is killed when PostgreSQL has committed what it was asked for, and before it could say so. The client is told that
// nobody knows; with a key it may send the request again, and is told what was done. A balancer that sends it again by itself
// sells twice.
func TestBalancerDoesNotRepeat(t *testing.T) {
	for name, test := range map[string]struct {
		key   string
		worse []string
		sold  int
	}{
		"without a key":           {"", nil, 1},
		"with a key":              {uuid.NewString(), nil, 1},
		"a balancer that repeats": {"", []string{"retry-on conn-failure", "retry-on all-retryable-errors"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var armed atomic.Bool
			asks, dead := make(chan struct{}), make(chan struct{})
			proxy := postgrestest.NewProxy(t, variable(t, "FENCEPOST_DATABASE_URL"), func(_ *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
				if r.Statement == "COMMIT" && armed.CompareAndSwap(true, false) {
					return pgproxy.LoseAnswer
				}
				if strings.Contains(r.Statement, "pg_xact_status") { // so it has committed, and does not know
					close(asks)
					<-dead
				}
				return pgproxy.Pass
			})
			letGo := sync.OnceFunc(func() { close(dead) })
			t.Cleanup(letGo)
			victim := start(t, 1, "postgres", "FENCEPOST_DATABASE_URL="+proxy.URL,
				"FENCEPOST_SWEEP_INTERVAL=1m", "FENCEPOST_AUDIT_INTERVAL=0")[0] // no other COMMIT
			b := startBalancer(t, append(start(t, 2, "postgres"), victim), test.worse...)
			item := createItem(t, victim.URL)
			armed.Store(true)

			// One after the other, until one has come to the victim.
			sent := 0
			var last post
			for hit := false; !hit; {
				sent++
				over := make(chan post, 1)
				key := test.key
				if key != "" {
					key += strconv.Itoa(sent)
				}
				go func() { over <- b.reserve(t, alone, item, key) }()
				select {
				case made := <-over:
					require.Equal(t, http.StatusCreated, made.status)
				case <-asks:
					hit = true
					require.NoError(t, victim.Kill())
					letGo()
					last = <-over
				case <-time.After(patience):
					t.Fatal("no request has come to the victim")
				}
			}
			require.Len(t, reservations(t, item), sent-1+test.sold)
			if test.sold > 1 {
				require.Equal(t, http.StatusCreated, last.status, "to the client all seems well")
				return
			}
			require.Equal(t, http.StatusBadGateway, last.status)
			require.Equal(t, "outcome_unknown", last.Code)
			require.Equal(t, test.key != "", last.Retryable)
			require.Empty(t, last.later, "it would invite programs to send the request again by themselves")
			if test.key != "" {
				again := b.reserve(t, alone, item, test.key+strconv.Itoa(sent))
				require.Equal(t, http.StatusCreated, again.status)
				require.True(t, again.replayed)
				require.Contains(t, reservations(t, item), again.ID)
				require.Len(t, reservations(t, item), sent)
			}
		})
	}
}

// post is what came of a POST. Status 0: there was no answer.
type post struct {
	sent      time.Time
	status    int
	replayed  bool
	later     string // Retry-After
	ID, Code  string
	Retryable bool
}

// reserve asks for one unit, once.
func (b *balancer) reserve(t *testing.T, transport *http.Transport, item, key string) post {
	p := post{sent: time.Now()}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL+"/v1/items/"+item+"/reservations", strings.NewReader(`{"quantity":1}`))
	if !assert.NoError(t, err) {
		return p
	}
	request.GetBody = nil // with it and a key net/http would send the request again by itself
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return p
	}
	defer response.Body.Close()
	if json.NewDecoder(response.Body).Decode(&p) != nil {
		return post{sent: p.sent} // cut off
	}
	p.status, p.replayed = response.StatusCode, response.Header.Get("Idempotent-Replayed") == "true"
	p.later = response.Header.Get("Retry-After")
	return p
}

// An event arrives while the stream stays open, although it is short. A balancer that waits for more keeps it back: those who
// listen to the instance itself have long had it.
func TestBalancerPassesEventsOn(t *testing.T) {
	for name, worse := range map[string][]string{
		"as shipped": nil,
		"buffering":  {"option http-no-delay", "http-response wait-for-body time 30s"},
	} {
		t.Run(name, func(t *testing.T) {
			running := start(t, 1, "postgres")
			b := startBalancer(t, append(running, running[0], running[0]), worse...)
			item := createItem(t, running[0].URL)
			direct, behind := listen(t, running[0].URL, item), listen(t, b.URL, item)
			await(t, "the instance's own stream", direct)
			if worse == nil {
				await(t, "a stream behind the balancer", behind)
			}
			for range 3 {
				require.Equal(t, http.StatusCreated, b.reserve(t, alone, item, "").status)
				began := time.Now()
				await(t, "an event of the instance's", direct)
				if worse != nil {
					require.Empty(t, behind, "something has come through")
					continue
				}
				await(t, "the event behind the balancer", behind)
				require.Less(t, time.Since(began), 5*time.Second) // the next sign of life would bring it along after 15
			}
		})
	}
}

// listen receives when the stream of events has begun, and then when a section of the item's is over.
func listen(t *testing.T, url, item string) <-chan struct{} {
	t.Helper()
	seen := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/events", nil)
	require.NoError(t, err)
	var reading sync.WaitGroup
	reading.Go(func() {
		response, err := alone.RoundTrip(request)
		if err != nil {
			return // it is over
		}
		defer response.Body.Close()
		kind := ""
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			switch text := lines.Text(); {
			case strings.HasPrefix(text, "retry:"):
				seen <- struct{}{}
			case strings.HasPrefix(text, "event: "):
				kind = text
			case kind == "event: section" && strings.HasPrefix(text, "data: ") && strings.Contains(text, item):
				seen <- struct{}{}
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
	return seen
}
