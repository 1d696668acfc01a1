package bench

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/report"
	"fencepost/cmd/lab/internal/servers"
)

func TestMain(m *testing.M) {
	servers.RunJanitor()
	m.Run()
}

// generous is a service that says yes to everybody and writes nothing down.
func generous(t *testing.T) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "{}")
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// The negative control of the whole benchmark: the sums must find every kind of wrong answer.
func TestWrongAnswersFail(t *testing.T) {
	ctx := t.Context()
	lab, err := servers.Start(ctx, servers.Options{
		Require: []string{servers.Postgres, servers.Redis},
		Getenv: func(variable string) string { // nothing is measured with ZooKeeper here
			if variable == "FENCEPOST_ZOOKEEPER_SERVERS" {
				return os.Getenv(variable)
			}
			return ""
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, lab.Close()) })
	r := &run{lab: lab, Options: Options{Progress: func(string) {}, Duration: 100 * time.Millisecond}}
	require.NoError(t, r.prepare(ctx))
	d := r.main
	wrong := func(ours bool, skus []string, created, unanswered int) {
		t.Helper()
		require.ErrorContains(t, d.check(ctx, ours, skus, created, unanswered), "the answers are wrong")
	}

	// A service that is fast because it does nothing.
	idle := []string{"idle"}
	require.NoError(t, d.addPeerItems(ctx, idle))
	l := &loop{addresses: []string{generous(t)}, skus: idle, clients: 1, duration: 20 * time.Millisecond, drain: drain}
	sample, err := l.run(ctx)
	require.NoError(t, err)
	require.Positive(t, sample.created)
	wrong(false, idle, sample.created, sample.Unanswered)
	wrong(true, idle, sample.created, sample.Unanswered)

	// Sums of a real strategy and of a real peer, and each of them falsified.
	contenders, err := Find([]string{"redis", "bsm-redislock"})
	require.NoError(t, err)
	for i, falsify := range [][]string{
		{
			`ALTER TABLE items DISABLE TRIGGER guard_update`,
			`UPDATE items SET reserved = reserved - 1 WHERE resource LIKE 'item/sums-%'`, // an update is lost
		},
		{`UPDATE peers.items SET stock = stock + 1 WHERE sku LIKE 'sums-%'`},
	} {
		c := contenders[i]
		skus := []string{"sums-" + c.Name}
		running, addresses, err := r.start(ctx, c, d, 1)
		require.NoError(t, err)
		sample, err := r.drive(ctx, c, d, addresses, skus, 3)
		require.NoError(t, err)
		require.NoError(t, instances.Stop(ctx, running))
		require.Positive(t, sample.created)
		require.NoError(t, d.check(ctx, c.Ours(), skus, sample.created, 0))
		require.NoError(t, d.check(ctx, c.Ours(), skus, sample.created-1, 1), "who hung up may have a reservation")
		wrong(c.Ours(), skus, sample.created+1, 0)
		wrong(c.Ours(), skus, sample.created-1, 0)
		wrong(c.Ours(), skus, sample.created-2, 1)
		for _, statement := range falsify {
			require.NoError(t, d.Exec(ctx, statement))
		}
		wrong(c.Ours(), skus, sample.created, 0)
	}
}

func TestLoopCountsAndHangsUp(t *testing.T) {
	t.Parallel()
	var last atomic.Pointer[time.Time] // when the last of the stuck requests has arrived
	stuck := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/stuck/") {
			now := time.Now()
			last.Store(&now)
			_, _ = r.Body.Read(make([]byte, 100)) // net/http notices a hang-up only when the body was read
			_, _ = r.Body.Read(make([]byte, 1))
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(stuck.Close)
	address := strings.TrimPrefix(stuck.URL, "http://")

	l := &loop{addresses: []string{address}, skus: []string{"free"}, clients: 2, duration: 50 * time.Millisecond, drain: drain}
	s, err := l.run(t.Context())
	require.NoError(t, err)
	assert.Positive(t, s.Answers)
	assert.GreaterOrEqual(t, s.created, s.Answers)
	assert.Zero(t, s.Unanswered)
	assert.InDelta(t, float64(s.Answers)/0.05, s.PerSecond, 0.01)
	assert.LessOrEqual(t, s.P50, s.P99)
	assert.LessOrEqual(t, s.P99, s.Max)

	l = &loop{addresses: []string{address}, skus: []string{"stuck"}, clients: 2, duration: 50 * time.Millisecond, drain: time.Millisecond}
	began := time.Now()
	s, err = l.run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 2, s.Unanswered)
	assert.Zero(t, s.created)
	late := last.Load().Sub(began) // a busy machine may have sent it long after the beginning
	assert.GreaterOrEqual(t, s.P50, (l.duration-late).Seconds()*1000, "the wait counts as it is")
	assert.Positive(t, s.P50)
}

func TestLoopFails(t *testing.T) {
	t.Parallel()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "sold out", http.StatusConflict)
	}))
	t.Cleanup(refusing.Close)
	l := &loop{
		addresses: []string{strings.TrimPrefix(refusing.URL, "http://")}, skus: []string{"x"}, clients: 3, duration: time.Minute,
	}
	_, err := l.run(t.Context())
	require.ErrorContains(t, err, "the answer is 409 sold out")
}

func TestReport(t *testing.T) {
	t.Parallel()
	hot := Scenario{Clients: crowd, Items: 1, Instances: 1}
	single := Scenario{Clients: 1, Items: 1, Instances: 1}
	ours, err := Find([]string{"redis"})
	require.NoError(t, err)
	peer, err := Find([]string{"bsm-redislock"})
	require.NoError(t, err)
	samples := func(perSecond ...float64) []Sample {
		var all []Sample
		for _, v := range perSecond {
			all = append(all, Sample{PerSecond: v, P50: 500 / v, P99: 1000 / v})
		}
		return all
	}
	r := &Report{CPUs: 2, Rounds: 3, Seconds: 4, Servers: []string{"postgres 15", "redis-1 7", "redis-2 7"}, Results: []Result{
		newResult(ours[0], single, samples(90, 100, 110)),
		newResult(peer[0], single, samples(100, 100, 100)),
		newResult(ours[0], hot, samples(1000, 3000, 2000)),
		newResult(peer[0], hot, samples(100, 100, 50)),
	}}
	r.Verdicts = r.judge(targets([]Scenario{single, hot}))

	assert.Equal(t, Span{Median: 2000, Least: 1000, Most: 3000}, r.Results[2].PerSecond)
	require.Len(t, r.Verdicts, 3, "what was not measured has no verdict")
	assert.Equal(t, Span{Median: 30, Least: 10, Most: 40}, r.Verdicts[0].Ratio, "taken within a round: 10, 30, 40")
	assert.True(t, r.Verdicts[0].Met)
	assert.Equal(t, "bsm-redislock / redis", r.Verdicts[1].Text)
	assert.Equal(t, Span{Median: 30, Least: 10, Most: 40}, r.Verdicts[1].Ratio, "a p99 that is so many times shorter")
	assert.Equal(t, Span{Median: 1, Least: 0.9, Most: 1.1}, r.Verdicts[2].Ratio)

	var text, page strings.Builder
	require.NoError(t, r.Print(&text))
	assert.Contains(t, text.String(), "2 CPUs")
	assert.Contains(t, text.String(), "postgres 15, redis 7.", "one Redis stands for all")
	assert.Regexp(t, `redis +2,000 \(1,000–3,000\) .* 30 \(10–40\) bsm-redislock`, text.String())
	assert.Regexp(t, `redis / bsm-redislock +30 \(10–40\) +≥ 20 +50 +yes`, text.String())
	assert.Contains(t, r.Markdown(), "| redis / bsm-redislock | 30 (10–40) | ≥ 20 | 50 | yes |\n")

	require.NoError(t, r.WriteHTML(&page))
	assert.Equal(t, 2, strings.Count(page.String(), "<figure>"))
	assert.Contains(t, page.String(), "<title>redis: 2,000 (1,000–3,000)</title>")
	for _, outside := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "ZgotmplZ"} {
		assert.NotContains(t, page.String(), outside, "the page must open without a network")
	}
}

func TestRatioToNothing(t *testing.T) {
	t.Parallel()
	s := Scenario{Clients: 1, Items: 1, Instances: 1}
	r := &Report{Seconds: 4, Results: []Result{
		newResult(Contender{Name: "redlock"}, s, []Sample{{PerSecond: 100}}),
		newResult(Contender{Name: "redsync-5"}, s, []Sample{{}}),
	}}
	ratio, measured := r.ratio(cell{"redlock", s}, cell{"redsync-5", s}, perSecond)
	require.True(t, measured)
	require.Equal(t, 400.0, ratio.Median, "as if there had been one answer")
}

func TestContendersAreComparedWithWhatThereIs(t *testing.T) {
	t.Parallel()
	for _, c := range Contenders {
		for _, name := range c.Peers {
			peer, err := Find([]string{name})
			require.NoError(t, err)
			require.False(t, peer[0].Ours(), "%s is compared with %s", c.Name, name)
		}
		require.Equal(t, c.Family == "none", report.StrategyColor(c.Family) == report.Grey)
	}
	for _, target := range targets(Scenarios([]int{1, 64}, []int{1000})) {
		_, err := Find([]string{target.over.contender, target.under.contender})
		require.NoError(t, err)
		require.Subset(t, Scenarios([]int{1, 64}, []int{1000}), []Scenario{target.over.scenario, target.under.scenario})
	}
	_, err := Find([]string{"redis", "memcached"})
	require.ErrorContains(t, err, `"memcached" is no contender: name one of none, local`)
}
