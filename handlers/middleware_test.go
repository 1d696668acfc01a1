package handlers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
)

func withPage(c *handlers.Config) {
	file := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the page")) })
	c.Page = map[string]http.Handler{"/": file, "/app.js": file}
}

// roleTest is a request, and the status of the answer to each who may send it.
type roleTest struct {
	method, path, body        string
	nobody, shop, other, boss int
}

// Every route, with the answers to nobody, to two ordinary keys and to an admin's.
func TestRoles(t *testing.T) {
	t.Parallel()
	tests := []roleTest{
		{"POST", "/v1/items", `{"sku":"a","name":"a","stock":1}`, 401, 403, 403, 201},
		{"GET", "/v1/items", "", 401, 200, 200, 200},
		{"GET", "/v1/items/lamp", "", 401, 200, 200, 200},
		{"POST", "/v1/items/lamp/restocks", `{"quantity":1}`, 401, 403, 403, 200},
		{"POST", "/v1/items/lamp/reservations", `{"quantity":1}`, 401, 201, 201, 201},
		{"POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1}]}`, 401, 201, 201, 201},
		{"GET", "/v1/reservations/rsv_1", "", 401, 200, 404, 200},
		{"POST", "/v1/reservations/rsv_1/confirm", "", 401, 409, 404, 409}, // no units are held: the section ran
		{"POST", "/v1/reservations/rsv_1/release", "", 401, 409, 404, 409},
		{"POST", "/v1/coupons", `{"code":"A","max_redemptions":1}`, 401, 403, 403, 201},
		{"GET", "/v1/coupons/TEN", "", 401, 403, 403, 200},
		{"POST", "/v1/coupons/TEN/redemptions", `{"customer_id":"c"}`, 401, 201, 201, 201},
		{"POST", "/v1/coupons/TEN/redemptions", `{"customer_id":"c","reservation_id":"rsv_1"}`, 401, 201, 422, 201},
		{"POST", "/v1/redemptions/rdm_1/rollback", "", 401, 409, 404, 409},
		{"GET", "/v1/strategies", "", 401, 200, 200, 200},
		{"GET", "/v1/audit", "", 401, 403, 403, 200},
		{"GET", "/v1/instances", "", 404, 404, 404, 404}, // only where authentication is off
		{"HEAD", "/v1/events", "", 401, 403, 403, 200},
		{"GET", "/metrics", "", 401, 200, 200, 200},
		{"GET", "/healthz", "", 200, 200, 200, 200},
		{"GET", "/readyz", "", 200, 200, 200, 200},
		{"GET", "/openapi.yaml", "", 200, 200, 200, 200},
		{"GET", "/", "", 200, 200, 200, 200},
	}
	operations(func(route string, _ *openapi3.Operation) {
		pattern := regexp.MustCompile("^" + regexp.MustCompile(`:[a-z]+`).ReplaceAllString(route, "[^/]+") + "$")
		assert.True(t, slices.ContainsFunc(tests, func(tt roleTest) bool {
			return pattern.MatchString(strings.Replace(tt.method, "HEAD", "GET", 1) + " " + tt.path)
		}), "%s is not among the tests", route)
	})
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			t.Parallel()
			for key, status := range map[string]int{"": tt.nobody, shopKey: tt.shop, otherKey: tt.other, adminKey: tt.boss} {
				m := newMemory()
				h := newHandler(m, withKeys, withPage)
				var headers []string
				if key != "" {
					headers = []string{"Authorization", "Bearer " + key}
				}
				w := call(h, tt.method, tt.path, tt.body, headers...)
				assert.Equal(t, status, w.Code, "%q: %s", key, w.Body)
				if status == 401 || status == 403 {
					assert.Zero(t, m.sections+m.made)
				}
				assert.Equal(t, status == 401, w.Header().Get("WWW-Authenticate") != "")
			}
		})
	}
}

func TestOnlyAdminsSeeWhereTheLockServersAre(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withKeys)
	for key, sees := range map[string]bool{shopKey: false, adminKey: true} {
		w := call(h, "GET", "/v1/strategies", "", "Authorization", "Bearer "+key)
		require.Equal(t, 200, w.Code)
		assert.Equal(t, sees, strings.Contains(w.Body.String(), "127.0.0.1:6379"), w.Body)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withKeys)
	for _, authorization := range []string{"", "Bearer", "Bearer ", "Basic " + shopKey, shopKey, "Bearer unknown", "Bearer  " + shopKey} {
		w := call(h, "GET", "/v1/items", "", "Authorization", authorization)
		assert.Equal(t, "unauthorized", problemOf(t, w).Code, authorization)
		assert.NotContains(t, w.Body.String(), shopKey)
	}
	assert.Equal(t, 200, call(h, "GET", "/v1/items", "", "Authorization", "bearer "+shopKey).Code)
	w := call(h, "GET", "/v1/items", "", "Authorization", "Bearer fp_database_down")
	assert.Equal(t, "backend_unavailable", problemOf(t, w).Code, "a key that cannot be checked is not a wrong key")
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withPage)
	for _, path := range []string{"/", "/v1/items", "/v1/unknown", "/healthz"} {
		w := call(h, "GET", path, "")
		assert.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"), path)
		assert.Equal(t, "no-referrer", w.Header().Get("Referrer-Policy"), path)
		assert.Equal(t, strings.HasPrefix(path, "/v1"), w.Header().Get("Cache-Control") == "no-store", path)
		assert.NotEmpty(t, w.Header().Get("X-Request-Id"))
	}
	w := call(h, "HEAD", "/v1/items", "")
	assert.Equal(t, 200, w.Code)
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory())
	for id, kept := range map[string]bool{
		"abcdefgh": true, "0199b6a2-7c1e-7c3f": true, strings.Repeat("a", 64): true,
		"short": false, strings.Repeat("a", 65): false, "with space": false, "new\nline--": false, "<script>": false, "ünïcödé-": false,
	} {
		got := call(h, "GET", "/healthz", "", "X-Request-Id", id).Header().Get("X-Request-Id")
		assert.Equal(t, kept, got == id, id)
		assert.Regexp(t, `^[A-Za-z0-9-]{8,64}$`, got)
	}
}

func TestPagesOfInstancesMayCallEachOther(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory())
	for origin, allowed := range map[string]bool{
		"http://127.0.0.1:8081":      true,
		"http://127.0.0.1:8082":      true, // listed with a slash behind it
		"http://127.0.0.1:8083":      false,
		"https://127.0.0.1:8081":     false,
		"http://127.0.0.1:8081.evil": false,
		"http://localhost:8081":      false,
		"null":                       false,
		"*":                          false,
	} {
		preflight := call(h, "OPTIONS", "/v1/items/lamp/reservations", "", "Origin", origin,
			"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type")
		m := newMemory()
		actual := call(newHandler(m), "POST", "/v1/items/lamp/reservations", `{"quantity":1}`, "Origin", origin, "Sec-Fetch-Site", "cross-site")
		assert.Contains(t, actual.Header().Values("Vary"), "Origin")
		assert.Empty(t, actual.Header().Get("Access-Control-Allow-Credentials"))
		if !allowed {
			assert.Empty(t, preflight.Header().Get("Access-Control-Allow-Origin"), origin)
			assert.Empty(t, actual.Header().Get("Access-Control-Allow-Origin"), origin)
			assert.Equal(t, "cross_origin", problemOf(t, actual).Code)
			assert.Zero(t, m.sections, origin)
			continue
		}
		assert.Equal(t, 204, preflight.Code)
		assert.Equal(t, origin, preflight.Header().Get("Access-Control-Allow-Origin"))
		assert.Contains(t, preflight.Header().Get("Access-Control-Allow-Headers"), "Content-Type")
		assert.Contains(t, preflight.Header().Get("Access-Control-Allow-Methods"), "POST")
		assert.Equal(t, 201, actual.Code)
		assert.Equal(t, origin, actual.Header().Get("Access-Control-Allow-Origin"))
		for _, name := range []string{"Fencepost-Strategy", "Fencepost-Token", "Server-Timing", "Retry-After"} {
			assert.Contains(t, actual.Header().Get("Access-Control-Expose-Headers"), name)
		}
	}
	assert.Equal(t, 200, call(h, "GET", "/v1/items", "", "Origin", "http://127.0.0.1:8083").Code, "reading does no harm: the browser keeps the answer")
}

// Where authentication is off, any site's form could otherwise confirm a reservation: such a POST needs no preflight.
func TestPostOfAnotherSiteWithoutBody(t *testing.T) {
	t.Parallel()
	m := newMemory()
	w := call(newHandler(m), "POST", "/v1/reservations/rsv_1/confirm", "", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")
	assert.Equal(t, "cross_origin", problemOf(t, w).Code)
	assert.Zero(t, m.sections)
}

// A page whose own name was made to lead to 127.0.0.1 is of the same origin as the service, to the browser.
func TestOtherNamesThatLeadHere(t *testing.T) {
	t.Parallel()
	withInstance := func(c *handlers.Config) { c.Instances = []string{"https://Shop.example:8443"} }
	for host, ours := range map[string]bool{
		"localhost": true, "localhost:8080": true, "LOCALHOST": true, "127.0.0.1": true, "127.0.0.1:8080": true, "127.1.2.3": true,
		"[::1]": true, "[::1]:8080": true, "[::ffff:127.0.0.1]:1": true, "shop.example": true, "shop.example:9000": true,
		"evil.example": false, "evil.example:8080": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false,
		"a.shop.example": false, "10.0.0.7": false, "0.0.0.0": false, "": false, ":8080": false, "[": false,
	} {
		for _, path := range []string{"/", "/v1/instances", "/v1/items", "/healthz", "/unknown"} {
			w := call(newHandler(newMemory(), withPage, withInstance), "GET", path, "", "Host", host)
			if ours {
				assert.NotEqual(t, 421, w.Code, "%q %s", host, path)
			} else {
				assert.Equal(t, "misdirected", problemOf(t, w).Code, "%q %s", host, path)
				assert.Equal(t, 421, w.Code)
			}
		}
		m := newMemory()
		call(newHandler(m, withInstance), "POST", "/v1/items/lamp/reservations", `{"quantity":1}`, "Host", host, "Origin", "http://"+host, "Sec-Fetch-Site", "same-origin")
		assert.Equal(t, ours, m.sections == 1, host)
	}
	w := call(newHandler(newMemory(), withKeys), "GET", "/v1/items", "", "Host", "evil.example", "Authorization", "Bearer "+shopKey)
	assert.Equal(t, 200, w.Code, "a page does not have the key")
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	m := newMemory()
	inside, leave := make(chan struct{}), make(chan struct{})
	m.during = func(context.Context) { close(inside); <-leave }
	h := newHandler(m, func(c *handlers.Config) { c.MaxRequests = 1 }, withPage)
	done := make(chan int)
	go func() { done <- call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`).Code }()
	<-inside
	w := call(h, "GET", "/v1/items", "")
	assert.Equal(t, "overloaded", problemOf(t, w).Code)
	assert.NotEmpty(t, w.Header().Get("Retry-After"))
	assert.Equal(t, 200, call(h, "GET", "/healthz", "").Code)
	assert.Equal(t, 200, call(h, "GET", "/readyz", "").Code)
	assert.Equal(t, 200, call(h, "GET", "/", "").Code)
	close(leave)
	assert.Equal(t, 201, <-done)
	assert.Equal(t, 200, call(h, "GET", "/v1/items", "").Code, "the slot is free again")
}

func TestLog(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	m := newMemory()
	h := newHandler(m, func(c *handlers.Config) { c.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	line := func(method, path, body string) map[string]any {
		log.Reset()
		call(h, method, path, body, "X-Request-Id", "12345678")
		if log.Len() == 0 {
			return nil
		}
		entry := map[string]any{}
		require.NoError(t, json.Unmarshal(log.Bytes(), &entry), log.String()) // one line
		return entry
	}

	got := line("POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, "INFO", got["level"])
	assert.Equal(t, "POST", got["method"])
	assert.Equal(t, "/v1/items/:sku/reservations", got["route"])
	assert.EqualValues(t, 201, got["status"])
	assert.Equal(t, "12345678", got["request_id"])
	assert.Equal(t, "redis", got["strategy"])
	assert.Contains(t, got, "duration")

	assert.Nil(t, line("GET", "/healthz", ""))
	assert.NotContains(t, line("GET", "/v1/items/unknown", ""), "error")

	m.err = &domain.UnavailableError{Server: "Redis", Err: http.ErrServerClosed}
	got = line("POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, "WARN", got["level"])
	assert.Contains(t, got["error"], "http: Server closed", "the log has what the client does not see")

	m.during = func(context.Context) { panic("a bug") }
	got = line("POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, "ERROR", got["level"])
	assert.EqualValues(t, 500, got["status"])
	assert.Equal(t, "panic: a bug", got["error"])
	assert.Contains(t, got["stack"], "middleware_test.go")
}

func TestPanicIsAnsweredWithoutDetail(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.during = func(context.Context) { panic("a secret") }
	w := call(newHandler(m), "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, 500, w.Code)
	assert.Equal(t, "internal", problemOf(t, w).Code)
	assert.NotContains(t, w.Body.String(), "secret")
}

func TestInstanceThatIsNoURL(t *testing.T) {
	t.Parallel()
	assert.Panics(t, func() {
		newHandler(newMemory(), func(c *handlers.Config) { c.Instances = []string{"127.0.0.1:8080"} })
	})
}

// The fields of draft-ietf-httpapi-ratelimit-headers-11, on every answer to a caller who is known.
func TestRateLimitFields(t *testing.T) {
	t.Parallel()
	m := newMemory()
	left := int64(2)
	h := newHandler(m, withKeys, func(c *handlers.Config) {
		c.Take = func(_ context.Context, caller domain.Caller) (domain.Quota, error) {
			if caller.Admin {
				return domain.Quota{}, nil
			}
			quota := domain.Quota{Limit: 2, Window: time.Minute, Reset: 1200 * time.Millisecond}
			if left == 0 {
				return quota, &domain.LimitedError{After: quota.Reset}
			}
			left--
			quota.Remaining = left
			return quota, nil
		}
	})
	ask := func(key string) *httptest.ResponseRecorder {
		return call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`, "Authorization", "Bearer "+key, "X-Forwarded-For", "10.0.0.1")
	}
	for _, remaining := range []string{"1", "0"} {
		w := ask(shopKey)
		require.Equal(t, 201, w.Code)
		assert.Equal(t, `"caller";q=2;w=60`, w.Header().Get("RateLimit-Policy"))
		assert.Equal(t, `"caller";r=`+remaining+`;t=2`, w.Header().Get("RateLimit"))
	}
	w := ask(shopKey)
	p := problemOf(t, w)
	assert.Equal(t, 429, w.Code)
	assert.Equal(t, "rate_limited", p.Code)
	assert.True(t, p.Retryable)
	assert.Equal(t, "2", w.Header().Get("Retry-After"))
	assert.Equal(t, `"caller";r=0;t=2`, w.Header().Get("RateLimit"))
	assert.Equal(t, 2, m.sections, "what is refused does nothing")
	w = ask(adminKey)
	assert.Equal(t, 201, w.Code)
	assert.Empty(t, w.Header().Get("RateLimit"))
	assert.Equal(t, 401, ask("wrong").Code)
	assert.Equal(t, 200, call(h, "GET", "/healthz", "").Code)
}
