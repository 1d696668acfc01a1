package load_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fencepost/cmd/lab/internal/load"
)

// shop is a service in memory. Each attempt reads what is left, thinks, and writes back one less: the truthful shop does it
// under a lock.
type shop struct {
	locked   bool
	fencing  string
	lose     int           // forgets so many of the sales that it has answered
	drop     int64         // breaks the connection of every so-manieth attempt after it was carried out
	busy     int64         // refuses every so-manieth attempt for the moment
	keyless  bool          // knows no Idempotency-Key
	hold     time.Duration // how long a hold lasts; 0: 10 minutes
	think    time.Duration
	stumble  time.Duration // how long the tenth attempt takes
	refusals int64         // stale writes, in the audit

	section  sync.Mutex
	mu       sync.Mutex
	stock    map[string]*stock
	answered map[string]func(http.ResponseWriter) // by Idempotency-Key
	buyers   map[string]bool
	attempts atomic.Int64
	arrived  chan struct{} // if not nil, told of every attempt
}

type stock struct{ limit, left, sales int }

func (s *shop) create(resource string, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stock == nil {
		s.stock, s.answered, s.buyers = map[string]*stock{}, map[string]func(http.ResponseWriter){}, map[string]bool{}
	}
	s.stock[resource] = &stock{limit: limit, left: limit}
}

// sell takes one of each resource, or says of which there is none left.
func (s *shop) sell(buyer string, resources []string) (missing string) {
	s.mu.Lock()
	left := map[string]int{}
	for _, resource := range resources {
		if left[resource] = s.stock[resource].left; left[resource] == 0 {
			s.mu.Unlock()
			return resource
		}
	}
	s.mu.Unlock()
	time.Sleep(s.think) // the shop's own slow step between read and write: what lets the one without a lock oversell
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range resources {
		s.stock[resource].left = left[resource] - 1
		s.stock[resource].sales++
	}
	s.buyers[buyer] = true
	return ""
}

// attempt answers an attempt to get one of each resource.
func (s *shop) attempt(w http.ResponseWriter, r *http.Request, buyer string, resources []string) {
	n := s.attempts.Add(1)
	if s.arrived != nil {
		s.arrived <- struct{}{}
	}
	if s.busy > 0 && n%s.busy == 0 {
		reply(w, 503, map[string]any{"code": "lock_timeout", "retryable": true})
		return
	}
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	locked := s.locked
	s.mu.Unlock()
	if locked {
		s.section.Lock()
		defer s.section.Unlock()
	}
	if n == 10 {
		time.Sleep(s.stumble) // a pause of the service, which the generator has to notice
	}
	s.mu.Lock()
	again, known := s.answered[key]
	s.mu.Unlock()
	if known && key != "" && !s.keyless {
		w.Header().Set("Idempotent-Replayed", "true")
		again(w)
		return
	}
	missing := s.sell(buyer, resources)
	answer := func(w http.ResponseWriter) {
		switch {
		case strings.HasPrefix(missing, "coupon/"):
			reply(w, 409, map[string]any{"code": "coupon_exhausted", "detail": "there is nothing left"})
		case missing != "":
			reply(w, 409, map[string]any{"code": "out_of_stock", "detail": "there is nothing left"})
		default:
			hold := 10 * time.Minute
			if s.hold > 0 {
				hold = s.hold
			}
			now := time.Now().Add(-time.Hour) // the service's clock need not be ours
			reply(w, 201, map[string]any{"created_at": now, "expires_at": now.Add(hold)})
		}
	}
	s.mu.Lock()
	s.answered[key] = answer
	s.mu.Unlock()
	if s.drop > 0 && n%s.drop == 0 {
		panic(http.ErrAbortHandler)
	}
	answer(w)
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, map[string]string{"status": "ok"}) })
	mux.HandleFunc("GET /v1/strategies", func(w http.ResponseWriter, r *http.Request) {
		reply(w, 200, map[string]any{"strategies": []map[string]any{
			{"name": "none", "fences": false, "available": true},
			{"name": "postgres", "fences": true, "available": true},
			{"name": "redis", "fences": true, "available": false, "problem": "FENCEPOST_REDIS_URL is not set"},
		}})
	})
	type lock struct{ Strategy, Fencing string }
	mux.HandleFunc("POST /v1/items", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			SKU   string
			Stock int
			Lock  lock
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		s.setUp(in.Lock.Strategy, in.Lock.Fencing)
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
	type attempt struct {
		CustomerID string `json:"customer_id"`
		Coupon     string
		Lines      []struct{ SKU string }
	}
	mux.HandleFunc("POST /v1/items/{name}/reservations", func(w http.ResponseWriter, r *http.Request) {
		var in attempt
		_ = json.NewDecoder(r.Body).Decode(&in)
		s.attempt(w, r, in.CustomerID, []string{"item/" + r.PathValue("name")})
	})
	mux.HandleFunc("POST /v1/coupons/{name}/redemptions", func(w http.ResponseWriter, r *http.Request) {
		var in attempt
		_ = json.NewDecoder(r.Body).Decode(&in)
		s.attempt(w, r, in.CustomerID, []string{"coupon/" + r.PathValue("name")})
	})
	mux.HandleFunc("POST /v1/orders", func(w http.ResponseWriter, r *http.Request) {
		var in attempt
		_ = json.NewDecoder(r.Body).Decode(&in)
		var resources []string
		for _, line := range in.Lines {
			resources = append(resources, "item/"+line.SKU)
		}
		if in.Coupon != "" {
			resources = append(resources, "coupon/"+in.Coupon)
		}
		s.attempt(w, r, in.CustomerID, resources)
	})
	mux.HandleFunc("GET /v1/audit", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		resource := r.FormValue("resource")
		of := s.stock[resource]
		sales := of.sales - s.lose
		over, drift := max(0, sales-of.limit), of.left-(of.limit-of.sales)
		reply(w, 200, map[string]any{"resources": []map[string]any{{
			"resource": resource, "limit": of.limit, "sold": 0, "held": sales, "oversold": over, "drift": max(drift, -drift),
			"refused": s.refusals, "strategy": "none", "fencing": s.fencing, "epoch": "1", "token": "0", "ok": over == 0 && drift == 0,
		}}})
	})
	mux.ServeHTTP(w, r)
}

// setUp has the shop lock or not, as a strategy would.
func (s *shop) setUp(strategy, fencing string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strategy != "" {
		s.locked, s.fencing = strategy == "postgres", fencing
	}
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
