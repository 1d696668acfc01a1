package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"fencepost/web"
)

// service is a service in memory that answers as the real one does, as far as the page can see, over several addresses.
// How honest it is can be set.
type service struct {
	excess    int           // sells so many units that do not exist
	drift     int           // what the audit says of the counters
	latency   time.Duration // before every reservation
	key       string        // the only valid API key; empty: none is needed, and the instances are named
	failEvery int           // answers every so-manieth reservation 503, with nothing written
	loseEvery int           // breaks the connection in the middle of the answer to every so-manieth sale

	instances []*httptest.Server

	mu    sync.Mutex
	asked int
	item  struct {
		SKU   string `json:"sku"`
		Name  string `json:"name"`
		Stock int    `json:"stock"`
		Lock  struct {
			Strategy string `json:"strategy"`
			Fencing  string `json:"fencing"`
		} `json:"lock"`
	}
	sold int
	// buyers are the customers that a unit was sold to, with the address that sold it.
	buyers map[string]string
}

// start serves s at n addresses until the test ends.
func start(t *testing.T, s *service, n int) *service {
	t.Helper()
	s.buyers = make(map[string]string)
	for range n {
		s.instances = append(s.instances, httptest.NewUnstartedServer(nil))
	}
	page := web.Files(s.urls())
	for _, instance := range s.instances {
		instance.Config.Handler = s.handler(page, "http://"+instance.Listener.Addr().String())
		instance.Start()
		t.Cleanup(func() { stop(instance) })
	}
	return s
}

// stop ends a server as a crash does: streams of events would keep Close waiting.
func stop(instance *httptest.Server) {
	instance.CloseClientConnections()
	instance.Close()
}

func (s *service) urls() []string {
	var urls []string
	for _, instance := range s.instances {
		urls = append(urls, "http://"+instance.Listener.Addr().String())
	}
	return urls
}

func (s *service) handler(page map[string]http.Handler, self string) http.Handler {
	mux := http.NewServeMux()
	for path, file := range page {
		if path == "/" {
			path = "/{$}" // this path alone, not all below it
		}
		mux.Handle("GET "+path, file)
	}
	mux.HandleFunc("GET /v1/strategies", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, map[string]any{"strategies": []map[string]any{
			{"name": "none", "summary": "no lock at all: read, decide, write", "fences": false, "available": true},
			{"name": "postgres", "summary": "row locks of the database itself", "fences": true, "available": true},
			{"name": "redis", "summary": "a lease in one Redis", "fences": true, "available": false, "problem": "no Redis server is configured: set FENCEPOST_REDIS_URL"},
		}})
	})
	mux.HandleFunc("GET /demo", func(w http.ResponseWriter, r *http.Request) {
		problem(w, http.StatusNotFound, "not_found", "There is nothing at this path.", false)
	})
	mux.HandleFunc("GET /v1/instances", func(w http.ResponseWriter, r *http.Request) {
		if s.key != "" {
			problem(w, http.StatusNotFound, "not_found", "There is nothing at this path.", false)
			return
		}
		answer(w, http.StatusOK, map[string]any{"instances": s.urls()})
	})
	mux.HandleFunc("POST /v1/items", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sold, s.asked = 0, 0
		clear(s.buyers)
		if err := json.NewDecoder(r.Body).Decode(&s.item); err != nil {
			problem(w, http.StatusBadRequest, "malformed", err.Error(), false)
			return
		}
		answer(w, http.StatusCreated, s.item)
	})
	mux.HandleFunc("POST /v1/items/{sku}/reservations", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Quantity   int    `json:"quantity"`
			CustomerID string `json:"customer_id"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Quantity != 1 || in.CustomerID == "" {
			problem(w, http.StatusUnprocessableEntity, "invalid", "quantity must be 1 and customer_id given", false)
			return
		}
		time.Sleep(s.latency) // this service is slow: so that a race can be stopped while it runs
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.PathValue("sku") != s.item.SKU {
			problem(w, http.StatusNotFound, "not_found", "no such item", false)
			return
		}
		s.asked++
		w.Header().Set("Fencepost-Strategy", s.item.Lock.Strategy)
		w.Header().Set("Fencepost-Token", fmt.Sprintf("1.%d", 9007199254740993+s.asked))
		w.Header().Set("Server-Timing", "lock;dur=2.5, db;dur=1.25")
		switch {
		case s.failEvery > 0 && s.asked%s.failEvery == 0:
			problem(w, http.StatusServiceUnavailable, "lock_timeout", "Others held the lock for the whole of the allowed wait. Nothing was written.", true)
		case s.sold >= s.item.Stock+s.excess:
			problem(w, http.StatusConflict, "out_of_stock", "0 units are available.", false)
		default:
			s.sold++
			s.buyers[in.CustomerID] = self
			if s.loseEvery > 0 && s.sold%s.loseEvery == 0 {
				w.Header().Set("Content-Length", "1000")
				w.WriteHeader(http.StatusCreated)
				// Without a byte of the answer Chromium sends the request again by itself.
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			answer(w, http.StatusCreated, map[string]any{"id": "rsv_1", "state": "held"})
		}
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprint(w, "retry: 2000\nid: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /v1/audit", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		over := max(0, s.sold-s.item.Stock)
		ok := over == 0 && s.drift == 0
		answer(w, http.StatusOK, map[string]any{"ok": ok, "resources": []map[string]any{{
			"resource": r.URL.Query().Get("resource"), "limit": s.item.Stock, "sold": 0, "held": s.sold, "oversold": over,
			"drift": s.drift, "refused": 0, "strategy": s.item.Lock.Strategy, "fencing": s.item.Lock.Fencing,
			"epoch": "1", "token": "7", "ok": ok,
		}}})
	})
	return s.across(mux)
}

// across does what the real instances do for each other's pages, and asks for the key.
func (s *service) across(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, url := range s.urls() {
			if r.Header.Get("Origin") == url {
				w.Header().Set("Access-Control-Allow-Origin", url)
				w.Header().Set("Access-Control-Expose-Headers", "Fencepost-Strategy, Fencepost-Token, Server-Timing")
			}
		}
		if r.Method == http.MethodOptions {
			w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD, POST")
			w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v1/") && s.key != "" && r.Header.Get("Authorization") != "Bearer "+s.key {
			problem(w, http.StatusUnauthorized, "unauthorized", "Send a valid key.", false)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func problem(w http.ResponseWriter, status int, code, detail string, retryable bool) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "code": code, "detail": detail, "retryable": retryable})
}
