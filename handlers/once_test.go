package handlers_test

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
)

const idempotencyKey = "Idempotency-Key"

// Every POST with a key is carried out once and answered alike however often it is sent, byte for byte.
func TestRetriesAreReplayed(t *testing.T) {
	t.Parallel()
	tests := []struct{ path, body string }{
		{"/v1/items", `{"sku": "bulb", "name": "Bulb", "stock": 1}`},
		{"/v1/items/lamp/restocks", `{"quantity": 1}`},
		{"/v1/items/lamp/reservations", `{"quantity": 1}`},
		{"/v1/items/lamp/reservations", `{"quantity": 11}`}, // more than there is: a refusal is an answer, too
		{"/v1/orders", `{"lines": [{"sku": "lamp", "quantity": 1}], "coupon": "TEN", "customer_id": "c"}`},
		{"/v1/reservations/rsv_1/confirm", ``},
		{"/v1/reservations/rsv_1/release", ``},
		{"/v1/coupons", `{"max_redemptions": 1}`}, // whose code is made, and must not be made again
		{"/v1/coupons/TEN/redemptions", `{"customer_id": "c"}`},
		{"/v1/redemptions/rdm_1/rollback", ``},
	}
	operations(func(route string, _ *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		pattern := regexp.MustCompile("^" + regexp.MustCompile(`:[a-z]+`).ReplaceAllString(path, "[^/]+") + "$")
		assert.True(t, method != http.MethodPost || slices.ContainsFunc(tests, func(c struct{ path, body string }) bool { return pattern.MatchString(c.path) }),
			"%s is not among the tests", route)
	})
	for _, c := range tests {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			m.items["lamp"] = domain.Item{SKU: "lamp", Name: "Lamp", OnHand: 10, Reserved: 1}
			m.coupons["TEN"] = domain.Coupon{Code: "TEN", MaxRedemptions: 10, Redeemed: 1}
			h := newHandler(m)
			first := call(h, http.MethodPost, c.path, c.body, idempotencyKey, "order-4711")
			require.Less(t, first.Code, 500, first.Body)
			require.Empty(t, first.Header().Get("Idempotent-Replayed"))
			creates := c.path == "/v1/items" || c.path == "/v1/coupons"
			require.Equal(t, !creates, first.Header().Get("Fencepost-Token") == "3.7")
			rows := func() []int {
				return []int{len(m.items), len(m.coupons), len(m.reservations), len(m.redemptions)}
			}
			made, stock, coupon := rows(), m.items["lamp"], m.coupons["TEN"]
			for range 3 {
				again := call(h, http.MethodPost, c.path, c.body, idempotencyKey, "order-4711")
				assert.Equal(t, "true", again.Header().Get("Idempotent-Replayed"))
				assert.Equal(t, first.Code, again.Code)
				assert.Equal(t, first.Body.String(), again.Body.String())
				assert.Equal(t, first.Header().Get("Content-Type"), again.Header().Get("Content-Type"))
				assert.Equal(t, first.Header().Get("Location"), again.Header().Get("Location"))
				for _, name := range []string{"Fencepost-Strategy", "Fencepost-Token"} {
					assert.Empty(t, again.Header().Values(name), "nothing was decided under the lock of now")
				}
			}
			assert.Equal(t, stock, m.items["lamp"], "it happened once")
			assert.Equal(t, coupon, m.coupons["TEN"])
			assert.Equal(t, made, rows())
		})
	}
}

func TestKeyOfAnotherRequest(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory(), withKeys)
	reserve := func(path, body, key, caller string) int {
		return call(h, http.MethodPost, path, body, idempotencyKey, key, "Authorization", "Bearer "+caller).Code
	}
	const path = "/v1/items/lamp/reservations"
	require.Equal(t, 201, reserve(path, `{"quantity": 1}`, "order-4711", shopKey))
	w := call(h, http.MethodPost, path, `{"quantity": 2}`, idempotencyKey, "order-4711", "Authorization", "Bearer "+shopKey)
	assert.Equal(t, "idempotency_key_reused", problemOf(t, w).Code)
	assert.Equal(t, 422, w.Code)
	w = call(h, http.MethodPost, "/v1/reservations/rsv_1/release", ``, idempotencyKey, "order-4711", "Authorization", "Bearer "+shopKey)
	assert.Equal(t, 422, w.Code, "another path is another request")
	assert.Equal(t, 422, reserve("/v1/items/vase/reservations", `{"quantity": 1}`, "order-4711", shopKey), "with the same body as well")
	w = call(h, http.MethodPost, "/v1/items/lamp/restocks", `{"quantity": 1}`, idempotencyKey, "restock-1", "Authorization", "Bearer "+adminKey)
	require.Equal(t, 200, w.Code)
	w = call(h, http.MethodPost, "/v1/items/lamp/restocks", `{"quantity": 1}`, idempotencyKey, "restock-1", "Authorization", "Bearer "+adminKey, "If-Match", "*")
	assert.Equal(t, "idempotency_key_reused", problemOf(t, w).Code, "another condition is another request")
	assert.Equal(t, 201, reserve(path, `{"quantity": 2}`, "order-4711", adminKey), "another caller's keys are others")
	assert.Equal(t, 201, reserve(path, `{"quantity": 1}`, "order-4712", shopKey))

	quoted := call(h, http.MethodPost, path, `{"quantity": 1}`, idempotencyKey, `"order-4711"`, "Authorization", "Bearer "+shopKey)
	assert.Equal(t, "true", quoted.Header().Get("Idempotent-Replayed"), "the quotes are the draft's way to write a key")
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	m := newMemory()
	for _, key := range []string{"", "short", strings.Repeat("k", 256), "with space in it", "naïve-key", `"unbalanced`, "semi;colon"} {
		w := call(newHandler(m), http.MethodPost, "/v1/items/lamp/reservations", `{"quantity": 1}`, idempotencyKey, key)
		p := problemOf(t, w)
		assert.Equal(t, "invalid", p.Code, key)
		assert.Equal(t, idempotencyKey, p.Field)
	}
	assert.Zero(t, m.sections)
}

// What says "try again" is never kept.
func TestFailuresAreNotReplayed(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{
		domain.ErrLockTimeout, domain.ErrLockLost, domain.ErrQueueFull, domain.ErrSuperseded, domain.ErrStaleToken,
		domain.ErrOutcomeUnknown, &domain.UnavailableError{Server: "Redis", Err: fmt.Errorf("boom")},
	} {
		m := newMemory()
		h := newHandler(m)
		m.err = failure
		w := call(h, http.MethodPost, "/v1/items/lamp/reservations", `{"quantity": 1}`, idempotencyKey, "order-4711")
		assert.True(t, problemOf(t, w).Retryable, "%v: with a key, everything that failed may be sent again", failure)
		m.err = nil
		w = call(h, http.MethodPost, "/v1/items/lamp/reservations", `{"quantity": 1}`, idempotencyKey, "order-4711")
		assert.Equal(t, 201, w.Code, "%v", failure)
	}
}

// Bytes are compared, not what they mean: only a hash of the request is kept.
func TestSameJSONInOtherBytes(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory())
	for i, body := range []string{`{"quantity":1,"customer_id":"c"}`, `{"customer_id":"c","quantity":1}`, `{"quantity":1, "customer_id":"c"}`, `{"quantity":1,"customer_id":"\u0063"}`} {
		w := call(h, http.MethodPost, "/v1/items/lamp/reservations", body, idempotencyKey, "order-4711")
		if i == 0 {
			require.Equal(t, 201, w.Code)
			continue
		}
		assert.Equal(t, 422, w.Code, body)
		assert.Equal(t, "idempotency_key_reused", problemOf(t, w).Code, body)
	}
}

// Whatever invites a client to try again is no answer: it would be kept, and the client would get it for ever.
func TestNoInvitationIsKept(t *testing.T) {
	t.Parallel()
	kept := 0
	for _, p := range handlers.Problems() {
		if !domain.Final(p.Err) {
			continue
		}
		kept++
		assert.NotContains(t, []int{429, 503}, p.Status, p.Code)
		assert.Less(t, p.Status, 500, p.Code)
		assert.False(t, p.Retryable, p.Code)
	}
	assert.Positive(t, kept)
}

func TestAnswerThatIsGone(t *testing.T) {
	t.Parallel()
	m := newMemory()
	h := newHandler(m)
	first := call(h, http.MethodPost, "/v1/items/lamp/reservations", `{"quantity": 1}`, idempotencyKey, "order-4711")
	for id, k := range m.answers {
		k.answer.Body = nil
		m.answers[id] = k
	}
	again := call(h, http.MethodPost, "/v1/items/lamp/reservations", `{"quantity": 1}`, idempotencyKey, "order-4711")
	assert.Equal(t, "answer_expired", problemOf(t, again).Code)
	assert.Equal(t, first.Header().Get("Location"), again.Header().Get("Location"))
	assert.EqualValues(t, 1, m.items["lamp"].Reserved)
}
