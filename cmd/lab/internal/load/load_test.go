package load_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/load"
)

// shop is a service in memory. Each attempt reads what is left, thinks, and writes back one less: the truthful shop does it
// under a lock.
type shop struct {
	locked  bool
	fencing string
	lose    int           // forgets so many of the sales that it has answered
	drop    int64         // breaks the connection of every so-manieth attempt after it was carried out
	hold    time.Duration // how long a hold lasts; 0: 10 minutes
	think   time.Duration

	section  sync.Mutex
	mu       sync.Mutex
	resource string
	limit    int
	left     int
	sales    int
	buyers   map[string]bool
	attempts atomic.Int64
}

func (s *shop) create(resource string, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resource, s.limit, s.left, s.sales, s.buyers = resource, limit, limit, 0, map[string]bool{}
}

func (s *shop) sell(buyer string) bool {
	if s.locked {
		s.section.Lock()
		defer s.section.Unlock()
	}
	s.mu.Lock()
	left := s.left
	s.mu.Unlock()
	if left == 0 {
		return false
	}
	time.Sleep(s.think) // the shop's own slow step between read and write: what lets the one without a lock oversell
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = left - 1
	s.sales++
	s.buyers[buyer] = true
	return true
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]string{"status": "ok"}) })
	mux.HandleFunc("POST /v1/items", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			SKU   string
			Stock int
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		s.create("item/"+in.SKU, in.Stock)
		reply(w, 201, in)
	})
	mux.HandleFunc("POST /v1/coupons", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Code string
			Max  int `json:"max_redemptions"`
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		s.create("coupon/"+in.Code, in.Max)
		reply(w, 201, in)
	})
	attempt := func(code string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			n := s.attempts.Add(1)
			var in struct {
				CustomerID string `json:"customer_id"`
				Quantity   int
			}
			_ = json.NewDecoder(r.Body).Decode(&in)
			sold := s.sell(in.CustomerID)
			if s.drop > 0 && n%s.drop == 0 {
				panic(http.ErrAbortHandler)
			}
			if !sold {
				reply(w, 409, map[string]any{"code": code, "detail": "there is nothing left"})
				return
			}
			hold := 10 * time.Minute
			if s.hold > 0 {
				hold = s.hold
			}
			now := time.Now().Add(-time.Hour) // the service's clock need not be ours
			reply(w, 201, map[string]any{"created_at": now, "expires_at": now.Add(hold)})
		}
	}
	mux.HandleFunc("POST /v1/items/{name}/reservations", attempt("out_of_stock"))
	mux.HandleFunc("POST /v1/coupons/{name}/redemptions", attempt("coupon_exhausted"))
	mux.HandleFunc("GET /v1/audit", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		sales := s.sales - s.lose
		over, drift := max(0, sales-s.limit), s.left-(s.limit-s.sales)
		reply(w, 200, map[string]any{"resources": []map[string]any{{
			"resource": s.resource, "limit": s.limit, "sold": 0, "held": sales, "oversold": over, "drift": max(drift, -drift),
			"strategy": "none", "fencing": s.fencing, "epoch": "1", "token": "0", "ok": over == 0 && drift == 0,
		}}})
	})
	mux.ServeHTTP(w, r)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// open serves the shop at n addresses.
func open(t *testing.T, s *shop, n int) load.Options {
	t.Helper()
	o := load.Options{Limit: 50, Buyers: 32, Requests: 200, Timeout: time.Minute}
	for range n {
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		o.Instances = append(o.Instances, server.URL)
	}
	return o
}

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
	assert.Equal(t, fmt.Sprintf("sold %d of 50, oversold %d, counters wrong by %d", s.sales, s.sales-50, r.Drift), r.Verdict)
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
