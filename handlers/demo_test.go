package handlers_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
)

// newDemo is a handler with the demonstration. The API's document has no part in it, so nothing is held to that.
func newDemo(m *memory, demo *handlers.Demo) http.Handler {
	return handlers.New(newConfig(m, func(c *handlers.Config) { c.Demo = demo }))
}

func TestWithoutDemoThereIsNone(t *testing.T) {
	t.Parallel()
	for _, request := range [][2]string{{"GET", "/demo"}, {"POST", "/demo/items/lamp/reservations"}, {"POST", "/demo/items/lamp/strategy"}, {"POST", "/demo/lab/kill"}} {
		assert.Equal(t, http.StatusNotFound, call(newDemo(newMemory(), nil), request[0], request[1], "{}").Code, request)
	}
	assert.Equal(t, http.StatusOK, call(newDemo(newMemory(), &handlers.Demo{}), "GET", "/demo", "").Code)
}

// The configuration allows a demonstration only where everybody is an admin. Should it ever do otherwise, the rest stay outside.
func TestDemoIsForAdmins(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withKeys, func(c *handlers.Config) { c.Demo = &handlers.Demo{} })
	for _, request := range [][2]string{{"GET", "/demo"}, {"POST", "/demo/items/lamp/reservations"}, {"POST", "/demo/items/lamp/strategy"}, {"POST", "/demo/lab/kill"}} {
		for key, status := range map[string]int{"": http.StatusUnauthorized, shopKey: http.StatusForbidden} {
			assert.Equal(t, status, call(h, request[0], request[1], "{}", "Authorization", "Bearer "+key).Code, "%s %q", request, key)
		}
	}
}

func TestSlowReservation(t *testing.T) {
	t.Parallel()
	var asked []time.Duration
	m := newMemory()
	demo := &handlers.Demo{Review: func(d time.Duration) func(context.Context, domain.Reservation) error {
		asked = append(asked, d)
		return func(context.Context, domain.Reservation) error { return nil }
	}}
	h := newDemo(m, demo)
	require.Equal(t, http.StatusCreated, call(h, "POST", "/demo/items/lamp/reservations", `{"quantity":1}`).Code)
	require.Empty(t, asked, "nobody has asked for a slow step")
	require.Equal(t, http.StatusCreated, call(h, "POST", "/demo/items/lamp/reservations", `{"quantity":1,"slow_ms":200}`).Code)
	require.Equal(t, []time.Duration{200 * time.Millisecond}, asked)
	for _, wrong := range []string{`{"quantity":1,"slow_ms":-1}`, `{"quantity":1,"slow_ms":4001}`, `{"quantity":1,"slow_ms":18446744073710}`} {
		w := call(h, "POST", "/demo/items/lamp/reservations", wrong)
		assert.Equal(t, http.StatusUnprocessableEntity, w.Code, wrong)
		assert.Contains(t, w.Body.String(), "slow_ms must be between 0 and 4000", wrong)
	}
	require.Equal(t, http.StatusForbidden, call(h, "POST", "/demo/items/lamp/reservations", `{"quantity":1}`, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site").Code,
		"another site's page may not")
}

func TestSwitching(t *testing.T) {
	t.Parallel()
	var switched []string
	demo := &handlers.Demo{Switch: func(_ context.Context, key domain.Key, strategy string) (domain.Authority, error) {
		switched = append(switched, string(key)+" "+strategy)
		return domain.Authority{Scope: domain.Scope(key), Strategy: strategy, Epoch: 2, Since: now}, nil
	}}
	w := call(newDemo(newMemory(), demo), "POST", "/demo/items/lamp/strategy", `{"strategy":"redis"}`)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	require.Equal(t, []string{"item/lamp redis"}, switched)
	require.JSONEq(t, `{"strategy":"redis","scope":"item/lamp","epoch":"2","since":"2026-03-01T12:00:00Z"}`, w.Body.String())
}

func TestFaultsAreTheLaboratorys(t *testing.T) {
	t.Parallel()
	lab := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.Method + " " + r.URL.Path + " " + string(body) {
		case "GET / ":
			_, _ = io.WriteString(w, `{"machine":"one"}`)
		case `POST /kill {"instance":1}`:
			_, _ = io.WriteString(w, `{"did":"so"}`)
		case `POST /nonsense {}`:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"code":"not_found"}`)
		}
	}))
	defer lab.Close()
	h := newDemo(newMemory(), &handlers.Demo{Lab: lab.URL, LeaseTTL: 2 * time.Second})
	require.JSONEq(t, `{"version":"test","lease_ttl_ms":2000,"lab":{"machine":"one"}}`, call(h, "GET", "/demo", "").Body.String())
	require.JSONEq(t, `{"did":"so"}`, call(h, "POST", "/demo/lab/kill", `{"instance":1}`).Body.String())
	require.Equal(t, http.StatusNotFound, call(h, "POST", "/demo/lab/nonsense", `{}`).Code)

	lab.Close()
	var answer struct {
		NoLab string `json:"no_lab"`
	}
	require.NoError(t, json.Unmarshal(call(h, "GET", "/demo", "").Body.Bytes(), &answer))
	require.Contains(t, answer.NoLab, "does not answer. Start it again: make demo.")
	require.Equal(t, http.StatusServiceUnavailable, call(h, "POST", "/demo/lab/kill", `{}`).Code)

	outside := newDemo(newMemory(), &handlers.Demo{})
	require.NoError(t, json.Unmarshal(call(outside, "GET", "/demo", "").Body.Bytes(), &answer))
	require.Contains(t, answer.NoLab, "Run make demo.")
	require.Equal(t, http.StatusNotFound, call(outside, "POST", "/demo/lab/kill", `{}`).Code)
}
