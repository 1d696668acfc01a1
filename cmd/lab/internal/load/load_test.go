package load_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

func TestATruthfulService(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 3)
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, r.OK)
	assert.Equal(t, "sold 50 of 50, oversold 0", r.Verdict)
	assert.Equal(t, map[string]int{"created": 50, "out_of_stock": 150}, r.Outcomes)
	assert.Equal(t, []string{"out_of_stock", "created"}, r.Codes())
	assert.EqualValues(t, 200, s.attempts.Load())
	assert.Len(t, s.buyers, 50, "every attempt is for another customer")
	require.Len(t, r.Instances, 3)
	for _, instance := range r.Instances {
		assert.NotEmpty(t, instance.Outcomes, "%s took no part", instance.URL)
	}
	assert.Positive(t, r.PerSecond)
	assert.Positive(t, r.Latency.P50)
	assert.LessOrEqual(t, r.Latency.P50, r.Latency.P95)
	assert.LessOrEqual(t, r.Latency.P95, r.Latency.P99)
	assert.LessOrEqual(t, r.Latency.P99, r.Latency.Max)
}

// The negative control of the test above: the same shop without its lock.
func TestAnOversellingService(t *testing.T) {
	t.Parallel()
	s := &shop{fencing: "off", think: time.Millisecond}
	r, err := load.Run(t.Context(), open(t, s, 3))
	require.NoError(t, err)
	assert.False(t, r.OK)
	assert.Positive(t, r.Oversold)
	assert.Positive(t, r.Drift)
	assert.Equal(t, fmt.Sprintf("sold %d of 50, oversold %d, counters wrong by %d", r.Held, r.Held-50, r.Drift), r.Verdict)
}

func TestACoupon(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 2)
	o.Coupon, o.Limit = true, 1
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Contains(t, r.Resource, "coupon/")
	assert.Equal(t, map[string]int{"created": 1, "coupon_exhausted": 199}, r.Outcomes)
	assert.Equal(t, "sold 1 of 1, oversold 0", r.Verdict)
}

// An answer that was lost on the way must not become a second attempt, neither by us nor by net/http.
func TestABrokenConnectionIsOneAttempt(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", drop: 5}
	o := open(t, s, 2)
	o.Limit = 1000
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.EqualValues(t, o.Requests, s.attempts.Load())
	assert.Equal(t, map[string]int{"created": 160, "no_answer": 40}, r.Outcomes)
	assert.EqualValues(t, 200, r.Held, "the lost answers were sales, and the verdict counts them")
	assert.True(t, r.OK)
}

// A retry carries the key of its attempt, so what was carried out is answered again. Nothing but our retries is sent: net/http
// would send a request with that header again by itself.
func TestRetries(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", drop: 5, busy: 7}
	o := open(t, s, 3)
	o.Limit, o.Retries = 1000, 10
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, r.OK, "%+v", r)
	assert.Equal(t, map[string]int{"created": 200}, r.Outcomes)
	assert.EqualValues(t, 200, r.Held, "each attempt was carried out once")
	assert.Zero(t, r.Surplus)
	assert.Positive(t, r.Replayed)
	sends := o.Requests
	for code, n := range r.Retried {
		assert.Contains(t, []string{"no_answer", "lock_timeout"}, code)
		sends += n
	}
	assert.EqualValues(t, sends, s.attempts.Load())
	elsewhere := 0
	for _, instance := range r.Instances {
		elsewhere += instance.Retried
	}
	assert.Equal(t, sends-o.Requests, elsewhere)
}

// The negative control of the test above: a service that does not know the key sells twice, and that is noticed.
func TestRetriesWithoutKeys(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", drop: 5, keyless: true}
	o := open(t, s, 3)
	o.Limit, o.Retries = 1000, 10
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Equal(t, map[string]int{"created": 200}, r.Outcomes)
	assert.Positive(t, r.Surplus)
	assert.False(t, r.OK)
	assert.Contains(t, r.Verdict, fmt.Sprintf("%d more than clients can know of", r.Surplus))
}

func TestItems(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", refusals: 2}
	o := open(t, s, 2)
	o.Items, o.Limit, o.Requests = 10, 5, 400
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, r.OK, "%+v", r)
	assert.Equal(t, map[string]int{"created": 50, "out_of_stock": 350}, r.Outcomes)
	assert.Equal(t, "sold 50 of 50, oversold 0", r.Verdict)
	assert.Regexp(t, `^item/load-[a-z0-9]{12}-\*$`, r.Resource)
	require.Len(t, r.Resources, 10)
	assert.Regexp(t, `^item/load-[a-z0-9]{12}-01$`, r.Resources[0].Resource)
	assert.EqualValues(t, 20, r.Refused, "the sum")
}

func TestOrders(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 2)
	o.Items, o.Lines, o.Coupon, o.Limit, o.Requests = 5, 3, true, 20, 100
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, r.OK, "%+v", r)
	require.Len(t, r.Resources, 6)
	coupon := r.Resources[5]
	assert.Contains(t, coupon.Resource, "coupon/load-")
	assert.EqualValues(t, r.Outcomes["created"], coupon.Held)
	assert.EqualValues(t, 4*r.Outcomes["created"], r.Held, "three lines and a use of the coupon each")
	assert.Equal(t, 100, r.Outcomes["created"]+r.Outcomes["out_of_stock"]+r.Outcomes["coupon_exhausted"])
	assert.Contains(t, r.Race, "orders of 3 lines, 5 items of 20 units, and a coupon of 20 uses; closed loop, 32 buyers, 100 attempts; 2 instances")
}

// A service that stops for a moment delays everybody who wants something meanwhile. An open loop shows that; in a closed one a
// single buyer sees a single slow answer.
func TestAnOpenLoopOmitsNothing(t *testing.T) {
	t.Parallel()
	run := func(rate float64) load.Report {
		s := &shop{locked: true, fencing: "enforced", stumble: 400 * time.Millisecond}
		o := open(t, s, 1)
		o.Buyers, o.Requests, o.Rate = 1, 60, rate
		r, err := load.Run(t.Context(), o)
		require.NoError(t, err)
		assert.True(t, r.OK)
		assert.Equal(t, 60, r.Requests)
		assert.GreaterOrEqual(t, r.Latency.Max, 400.)
		return r
	}
	open := run(100) // 50 of the 60 are due after the tenth, 40 of them while it keeps the shop
	assert.Greater(t, open.Latency.P50, 50.)
	assert.Greater(t, open.Late, 20)
	assert.Contains(t, strings.Join(open.Notes, "\n"), "because all 1 buyers were busy")
	assert.Contains(t, open.Race, "open loop, 100 attempts/s, at most 1 buyer")

	closed := run(0) // the control
	assert.Less(t, closed.Latency.P50, 50.)
	assert.Zero(t, closed.Late)
}

func TestTheTimeBoundsAnOpenLoop(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 1)
	o.Limit, o.Requests, o.Rate, o.Ramp, o.Timeout = 1000, 0, 200, 500*time.Millisecond, time.Second
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Equal(t, 150, r.Requests+r.Unsent, "50 while the rate rises, and 100")
	assert.EqualValues(t, r.Requests, s.attempts.Load())
	assert.Greater(t, r.Requests, 100)
	assert.True(t, r.OK)

	// Without a bound on the attempts, nothing is left unsent.
	o.Rate, o.Ramp, o.Timeout, o.Limit = 0, 100*time.Millisecond, 300*time.Millisecond, 1_000_000
	r, err = load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Positive(t, r.Requests)
	assert.Zero(t, r.Unsent)
	assert.Equal(t, map[string]int{"created": r.Requests}, r.Outcomes)
}

func TestCompare(t *testing.T) {
	t.Parallel()
	s := &shop{think: time.Millisecond}
	o := open(t, s, 2)
	var begun []string
	reports, err := load.Compare(t.Context(), o, []string{"none", "postgres"},
		func(strategy string) { begun = append(begun, strategy) }, func(load.Report) { begun = append(begun, "done") })
	require.NoError(t, err)
	assert.Equal(t, []string{"none", "done", "postgres", "done"}, begun)
	require.Len(t, reports, 2)
	assert.Equal(t, "off", reports[0].Fencing, "no tokens, no fence")
	assert.Positive(t, reports[0].Oversold)
	assert.Equal(t, "enforced", reports[1].Fencing)
	assert.True(t, reports[1].OK)

	_, err = load.Compare(t.Context(), o, []string{"none", "redis"}, nil, nil)
	require.ErrorContains(t, err, o.Instances[0]+" cannot use the strategy redis: FENCEPOST_REDIS_URL is not set; set it up, or leave redis out")
	_, err = load.Compare(t.Context(), o, []string{"etcd"}, nil, nil)
	require.ErrorContains(t, err, `has no strategy "etcd": name some of none,postgres,redis`)

	ctx, stop := context.WithCancel(t.Context())
	reports, err = load.Compare(ctx, o, []string{"none", "postgres"}, func(string) {}, func(load.Report) { stop() })
	require.NoError(t, err)
	assert.Len(t, reports, 1, "what was held before the end")
}

func TestSummary(t *testing.T) {
	t.Parallel()
	s := &shop{think: time.Millisecond}
	o := open(t, s, 2)
	reports, err := load.Compare(t.Context(), o, []string{"none", "postgres"}, func(string) {}, func(load.Report) {})
	require.NoError(t, err)
	reports[1].Retried, reports[1].Replayed = map[string]int{"no_answer": 3, "lock_timeout": 7}, 2
	summary := load.NewSummary(reports)
	var text, page strings.Builder
	require.NoError(t, summary.Print(&text))
	assert.Regexp(t, `strategy +fencing +stock +created +oversold +lost updates +refused stale writes +answers/s +p50 ms +p99 ms\n`, text.String())
	assert.Regexp(t, fmt.Sprintf(`none +off +50 +%d +%d +%d +0 `, reports[0].Outcomes["created"], reports[0].Oversold, reports[0].Drift), text.String())
	assert.Regexp(t, `none +enforced +50 +50 +0 +0 +0 `, text.String(), "the audit calls every lock of the shop none")

	require.NoError(t, summary.WriteHTML(&page))
	assert.Equal(t, 5, strings.Count(page.String(), "<figure>"), "a curve, and two plots for each")
	assert.Contains(t, page.String(), "outcomes in each ")
	assert.Contains(t, page.String(), "sent again after 7 lock_timeout, 3 no_answer; answered from what was done before: 2")
	for _, outside := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "ZgotmplZ", "NaN"} {
		assert.NotContains(t, page.String(), outside, "the page must open without a network")
	}
	assert.Contains(t, page.String(), "<td>out_of_stock</td>")

	// The sums of the plots are those of the table.
	for _, r := range reports {
		sums := map[string]int{}
		for _, moment := range r.Timeline {
			for code, n := range moment.Outcomes {
				sums[code] += n
			}
		}
		assert.Equal(t, r.Outcomes, sums)
		for i := 1; i < len(r.Curve); i++ {
			assert.LessOrEqual(t, r.Curve[i-1].Milliseconds, r.Curve[i].Milliseconds)
		}
		assert.Equal(t, load.Percentile{Percentile: 100, Milliseconds: r.Latency.Max}, r.Curve[len(r.Curve)-1])
	}
}

func TestWhatWasPromisedIsLookedFor(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", lose: 3}
	r, err := load.Run(t.Context(), open(t, s, 1))
	require.NoError(t, err)
	assert.EqualValues(t, 3, r.Missing)
	assert.False(t, r.OK)
	assert.Contains(t, r.Verdict, "3 that clients were promised are missing")

	// Holds that expire while the race runs are no broken promise.
	s = &shop{locked: true, fencing: "enforced", lose: 3, hold: time.Millisecond, think: time.Millisecond}
	r, err = load.Run(t.Context(), open(t, s, 1))
	require.NoError(t, err)
	assert.Zero(t, r.Missing)
	assert.True(t, r.OK)
}

func TestTheTimeIsBounded(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", think: 20 * time.Millisecond}
	o := open(t, s, 1)
	o.Limit, o.Requests, o.Timeout = 100000, 100000, 300*time.Millisecond
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Positive(t, r.Unsent)
	assert.Equal(t, o.Requests, r.Requests+r.Unsent)
	assert.EqualValues(t, r.Requests, s.attempts.Load())
	assert.EqualValues(t, r.Outcomes["created"], r.Held, "attempts on their way were waited for")
}

func TestADeadInstanceLeavesTheOthersTheirAttempts(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", think: time.Millisecond}
	o := open(t, s, 1)
	o.Limit, o.Requests, o.Buyers = 300, 300, 10
	dying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			panic(http.ErrAbortHandler)
		}
	}))
	defer dying.Close()
	o.Instances = append(o.Instances, dying.URL)
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Greater(t, r.Outcomes["created"], 200)
	assert.Equal(t, map[string]int{"no_answer": r.Outcomes["no_answer"]}, r.Instances[1].Outcomes)
}

// mortal serves the shop at one more address, until it is killed.
func mortal(t *testing.T, s *shop, o *load.Options) (kill func()) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	o.Instances = append([]string{server.URL}, o.Instances...) // the first one is asked first for everything
	return func() {
		_ = server.Listener.Close()
		server.CloseClientConnections()
	}
}

// after runs f when the shop has had n attempts.
func after(s *shop, n int, f func()) {
	s.arrived = make(chan struct{}, 100_000) // nobody waits for it
	go func() {
		for range n {
			<-s.arrived
		}
		f()
	}()
}

func TestAnInstanceIsKilled(t *testing.T) {
	t.Parallel()
	for name, retries := range map[string]int{"counted": 0, "sent again elsewhere": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &shop{locked: true, fencing: "enforced", think: time.Millisecond}
			o := open(t, s, 2)
			after(s, 60, mortal(t, s, &o))
			o.Limit, o.Requests, o.Buyers, o.Retries = 300, 300, 12, retries
			r, err := load.Run(t.Context(), o)
			require.NoError(t, err)
			assert.True(t, r.OK, "%+v", r)
			assert.Zero(t, r.Surplus)
			require.NotEmpty(t, r.Instances[0].Gone)
			assert.Empty(t, r.Instances[1].Gone)
			require.Len(t, r.Notes, 1)
			assert.Contains(t, r.Notes[0], o.Instances[0]+" does not answer any more (")
			if retries > 0 {
				assert.Equal(t, map[string]int{"created": 300}, r.Outcomes, "each was answered by another instance")
				assert.Positive(t, r.Retried["no_answer"])
			} else {
				assert.Positive(t, r.Outcomes["no_answer"])
				assert.Contains(t, r.Notes[0], fmt.Sprintf("no answer to %d attempt", r.Instances[0].Outcomes["no_answer"]))
			}
		})
	}
}

func TestAllInstancesAreKilled(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", think: time.Millisecond}
	o := load.Options{Limit: 300, Requests: 300, Buyers: 4, Timeout: 2 * time.Second}
	after(s, 20, mortal(t, s, &o))
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.False(t, r.OK)
	assert.False(t, r.Audited)
	assert.Equal(t, "there is no verdict: no instance answers any more", r.Verdict)
	assert.Positive(t, r.Outcomes["created"], "what was seen is reported all the same")
	assert.Positive(t, r.Outcomes["no_answer"])
	var out strings.Builder
	require.NoError(t, load.NewSummary([]load.Report{r}).Print(&out))
	assert.Contains(t, out.String(), "there is no verdict")
}

// An instance that takes connections and answers nothing, as one that was stopped does.
func TestAnInstanceHangs(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 1)
	hanging, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			once.Do(func() { close(hanging) })
		}
		select {
		case <-hanging:
			<-over
		default:
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(over) })
	o.Instances = append(o.Instances, server.URL)
	o.Buyers, o.Requests, o.Patience = 4, 60, time.Second
	r, err := load.Run(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, r.OK, "%+v", r)
	assert.Positive(t, r.Instances[1].Outcomes["no_answer"])
	assert.Contains(t, r.Instances[1].Gone, "no answer within 5s")
}

func TestAnInterruptStillHasAVerdict(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced", think: 5 * time.Millisecond}
	o := open(t, s, 1)
	o.Limit, o.Requests = 100000, 100000
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(load.Progress) { cancel() }
	r, err := load.Run(ctx, o)
	require.NoError(t, err)
	assert.Positive(t, r.Unsent)
	assert.True(t, r.OK)
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	t.Parallel()
	s := &shop{locked: true, fencing: "enforced"}
	o := open(t, s, 2)
	gone := httptest.NewServer(s)
	gone.Close()
	o.Instances = append(o.Instances, gone.URL)
	_, err := load.Run(t.Context(), o)
	require.ErrorContains(t, err, gone.URL+" does not answer: start it")
	assert.Zero(t, s.attempts.Load())

	_, err = load.Discover(t.Context(), gone.URL, "")
	require.ErrorContains(t, err, gone.URL+" does not answer")

	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	o.Instances = []string{stranger.URL}
	_, err = load.Run(t.Context(), o)
	require.ErrorContains(t, err, "answers 404 to /healthz")

	strict := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			return
		}
		reply(w, 401, map[string]any{"code": "unauthorized", "detail": "Send a valid key."})
	}))
	defer strict.Close()
	o.Instances = []string{strict.URL}
	_, err = load.Run(t.Context(), o)
	require.ErrorContains(t, err, "401 unauthorized: Send a valid key. Set FENCEPOST_API_KEY")
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Authorization")
		reply(w, 200, map[string]any{"instances": []string{"http://a.example", "http://b.example"}})
	}))
	defer server.Close()
	instances, err := load.Discover(t.Context(), server.URL, "secret")
	require.NoError(t, err)
	assert.Equal(t, []string{"http://a.example", "http://b.example"}, instances)
	assert.Equal(t, "Bearer secret", asked)

	silent := httptest.NewServer(http.NotFoundHandler())
	defer silent.Close()
	instances, err = load.Discover(t.Context(), silent.URL, "")
	require.NoError(t, err)
	assert.Equal(t, []string{silent.URL}, instances)
}
