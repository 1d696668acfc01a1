package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
)

func TestEveryErrorHasItsAnswer(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp 10.0.0.7:5432: password=hunter2")
	unavailable := &domain.UnavailableError{Server: "Redis", Err: secret}
	refusal := domain.Refusal{
		Grant:        domain.Grant{Key: "item/lamp", Strategy: "redis", Epoch: 2, Token: 9007199254740993},
		CurrentEpoch: 3, CurrentToken: 9007199254740995,
	}
	// Those that a reservation cannot end with are asked for where they belong.
	redeem := [2]string{"/v1/coupons/TEN/redemptions", `{"customer_id":"c"}`}
	confirm := [2]string{"/v1/reservations/rsv_1/confirm", ""}
	elsewhere := map[string][2]string{
		"already_exists":      {"/v1/items", `{"sku":"vase","name":"Vase","stock":1}`},
		"precondition_failed": {"/v1/items/lamp/restocks", `{"quantity":1}`},
		"wrong_state":         confirm, "reservation_expired": confirm,
		"coupon_exhausted": redeem, "coupon_expired": redeem, "customer_limit": redeem,
	}
	for _, tt := range []struct {
		err       error
		status    int
		code      string
		retryable bool
	}{
		{domain.Invalid("quantity", "must be odd"), 422, "invalid", false},
		{fmt.Errorf("item: %w", domain.ErrNotFound), 404, "not_found", false},
		{fmt.Errorf("item: %w", domain.ErrAlreadyExists), 409, "already_exists", false},
		{fmt.Errorf("item: %w", domain.ErrOutOfStock), 409, "out_of_stock", false},
		{fmt.Errorf("item: %w", domain.ErrWrongState), 409, "wrong_state", false},
		{fmt.Errorf("item: %w", domain.ErrChanged), 412, "precondition_failed", false},
		{fmt.Errorf("item: %w", domain.ErrExpired), 409, "reservation_expired", false},
		{fmt.Errorf("item: %w", domain.ErrCouponExhausted), 409, "coupon_exhausted", false},
		{fmt.Errorf("item: %w", domain.ErrCustomerLimit), 409, "customer_limit", false},
		{fmt.Errorf("%w: 7", domain.ErrTooManyHolds), 409, "too_many_holds", false},
		{&domain.LimitedError{After: 2500 * time.Millisecond}, 429, "rate_limited", true},
		{fmt.Errorf("item: %w", domain.ErrCouponExpired), 410, "coupon_expired", false},
		{fmt.Errorf("%w: %w", domain.ErrCountersCorrupted, secret), 409, "counters_corrupted", false},
		{fmt.Errorf("%w: %w", domain.ErrLockTimeout, secret), 503, "lock_timeout", true},
		{fmt.Errorf("%w: %w", domain.ErrQueueFull, secret), 503, "queue_full", true},
		{fmt.Errorf("%w: %w", domain.ErrLockLost, secret), 503, "lock_lost", true},
		{&domain.RefusedError{Refusal: refusal, Err: domain.ErrStaleToken}, 409, "stale_fencing_token", true},
		{&domain.RefusedError{Refusal: refusal, Err: domain.ErrSuperseded}, 503, "strategy_superseded", true},
		{&domain.RefusedError{Refusal: refusal, Err: domain.ErrFencingRequired}, 409, "fencing_required", false},
		{fmt.Errorf("acquiring: %w", unavailable), 503, "backend_unavailable", true},
		{fmt.Errorf("%w: %w", unavailable, domain.ErrOutcomeUnknown), 503, "outcome_unknown", false},
		{fmt.Errorf("%w: %w", context.DeadlineExceeded, secret), 503, "timeout", true},
		{secret, 500, "internal", false},
		{context.Canceled, 500, "internal", false}, // the client is still there, so it is a fault of ours
	} {
		t.Run(tt.code, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.err = tt.err
			to, ok := elsewhere[tt.code]
			if !ok {
				to = [2]string{"/v1/items/lamp/reservations", `{"quantity":1}`}
			}
			w := call(newHandler(m), "POST", to[0], to[1])
			p := problemOf(t, w)
			assert.Equal(t, tt.status, w.Code)
			assert.Equal(t, tt.code, p.Code)
			assert.Equal(t, tt.retryable, p.Retryable)
			assert.Equal(t, to[0], p.Instance)
			assert.NotContains(t, w.Body.String(), "hunter2")
			assert.NotContains(t, w.Body.String(), "10.0.0.7")
			if tt.status == 503 {
				assert.Equal(t, tt.retryable, w.Header().Get("Retry-After") != "")
				assert.Equal(t, tt.code != "outcome_unknown", strings.HasSuffix(p.Detail, "Nothing was written."))
			}
			switch tt.code {
			case "rate_limited":
				assert.Equal(t, "3", w.Header().Get("Retry-After"), "a client that comes back earlier is refused again")
			case "invalid":
				assert.Equal(t, "quantity", p.Field)
				assert.Equal(t, "quantity must be odd", p.Detail)
			case "backend_unavailable":
				assert.Contains(t, p.Detail, "Redis is not available")
			case "stale_fencing_token":
				assert.Equal(t, "2.9007199254740993", p.PresentedToken)
				assert.Equal(t, "3.9007199254740995", p.CurrentToken)
			}
		})
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withPage)
	for _, tt := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/v1", 404, ""},
		{"GET", "/v1/", 404, ""},
		{"POST", "/v1/unknown", 404, ""},
		{"GET", "/v1/items/lamp/unknown", 404, ""},
		{"POST", "/v1/reservations/rsv_1/destroy", 404, ""},
		{"GET", "/v1/items/", 404, ""},
		{"GET", "/v1/items/lamp%2Frestocks/x", 404, ""},
		{"DELETE", "/v1/items", 405, "OPTIONS, GET, HEAD, POST"},
		{"PUT", "/v1/items/lamp", 405, "OPTIONS, GET, HEAD"},
		{"GET", "/v1/items/lamp/reservations", 405, "OPTIONS, POST"},
		{"POST", "/healthz", 405, "OPTIONS, GET, HEAD"},
		{"POST", "/", 405, "OPTIONS, GET, HEAD"},
		{"POST", "/app.js", 405, "OPTIONS, GET, HEAD"},
		{"GET", "/index.html", 404, ""},
		{"GET", "/app.js/", 404, ""},
		{"GET", "//", 404, ""},
		{"GET", "/../app.js", 404, ""},
		{"POST", "/unknown", 404, ""},
	} {
		w := call(h, tt.method, tt.path, "")
		p := problemOf(t, w)
		assert.Equal(t, tt.status, w.Code, "%s %s", tt.method, tt.path)
		assert.Equal(t, tt.allow, w.Header().Get("Allow"), "%s %s", tt.method, tt.path)
		assert.False(t, p.Retryable)
	}
	assert.Equal(t, "the page", call(h, "GET", "/", "").Body.String())
	assert.Equal(t, "the page", call(h, "GET", "/app.js", "").Body.String())
	assert.Equal(t, 404, call(newHandler(newMemory()), "GET", "/", "").Code, "no page, no path")
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), func(c *handlers.Config) {
		c.Ready = func(context.Context) error { return fmt.Errorf("draining: %w", domain.ErrUnavailable) }
	})
	w := call(h, "GET", "/readyz", "")
	p := problemOf(t, w)
	assert.Equal(t, 503, w.Code)
	assert.Equal(t, "not_ready", p.Code)
	assert.Contains(t, p.Detail, "draining")
	assert.NotEmpty(t, w.Header().Get("Retry-After"))
	assert.Equal(t, 200, call(h, "GET", "/healthz", "").Code, "not ready is not dead")
}

func TestClientThatIsGone(t *testing.T) {
	t.Parallel()
	m := newMemory()
	ctx, cancel := context.WithCancel(t.Context())
	m.during = func(context.Context) { cancel() }
	m.err = fmt.Errorf("waiting for the lock: %w", context.Canceled)
	r := httptest.NewRequestWithContext(ctx, "POST", "/v1/reservations/rsv_1/confirm", nil)
	r.Host = "localhost"
	w := httptest.NewRecorder()
	newHandler(m).ServeHTTP(w, r)
	assert.Equal(t, 499, w.Code)
	body, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	assert.Empty(t, body)
}

func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.during = func(ctx context.Context) {
		<-ctx.Done()
		m.err = ctx.Err()
	}
	h := newHandler(m, func(c *handlers.Config) { c.RequestTimeout = time.Millisecond })
	w := call(h, "POST", "/v1/reservations/rsv_1/confirm", "")
	assert.Equal(t, "timeout", problemOf(t, w).Code)
}
