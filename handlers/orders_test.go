package handlers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
)

func TestOrders(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory())
	w := call(h, "POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1},{"sku":"lamp","quantity":2}],"coupon":"TEN","customer_id":"Zo","ttl_seconds":60}`)
	require.Equal(t, 201, w.Code, w.Body)
	var order struct {
		ID, State string
		Lines     []struct {
			SKU      string
			Quantity int
		}
		Redemption struct {
			ID, Code      string
			ReservationID string `json:"reservation_id"`
		}
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &order))
	assert.Equal(t, "/v1/reservations/"+order.ID, w.Header().Get("Location"))
	assert.Equal(t, "held", order.State)
	require.Len(t, order.Lines, 1)
	assert.Equal(t, 3, order.Lines[0].Quantity)
	assert.Equal(t, "TEN", order.Redemption.Code)
	assert.Equal(t, order.ID, order.Redemption.ReservationID)
	assert.Equal(t, 200, call(h, "GET", "/v1/reservations/"+order.ID, "").Code)

	w = call(h, "POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1}]}`)
	require.Equal(t, 201, w.Code, w.Body)
	assert.NotContains(t, w.Body.String(), "redemption")

	w = call(h, "POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":50}]}`)
	assert.Equal(t, "out_of_stock", problemOf(t, w).Code)
	assert.Contains(t, w.Body.String(), `"skus":["lamp"]`)
}

// A field is named by its line.
func TestOrdersThatAreRefused(t *testing.T) {
	t.Parallel()
	for body, field := range map[string]string{
		`{}`:                         "lines",
		`{"lines":null}`:             "lines",
		`{"lines":{}}`:               "lines",
		`{"lines":"lamp"}`:           "lines",
		`{"lines":[]}`:               "lines",
		`{"lines":[null]}`:           "lines[0]",
		`{"lines":["lamp"]}`:         "lines[0]",
		`{"lines":[{"sku":"lamp"}]}`: "lines[0].quantity",
		`{"lines":[{"sku":"lamp","quantity":1},{"sku":"lamp","quantity":"1"}]}`:                             "lines[1].quantity",
		`{"lines":[{"sku":"lamp","quantity":1},{"sku":"lamp","quantity":0}]}`:                               "lines[1].quantity",
		`{"lines":[{"sku":"lamp","quantity":1},{"sku":"ghost","quantity":1}]}`:                              "lines[1].sku",
		`{"lines":[{"sku":"lamp","quantity":1},{"sku":"a b","quantity":1}]}`:                                "lines[1].sku",
		`{"lines":[{"sku":"lamp","quantity":1,"price":1}]}`:                                                 "lines[0].price",
		`{"lines":[{"sku":"lamp","quantity":1}],"coupon":""}`:                                               "coupon",
		`{"lines":[{"sku":"lamp","quantity":1}],"coupon":"TEN"}`:                                            "customer_id",
		`{"lines":[{"sku":"lamp","quantity":1}],"ttl_seconds":0}`:                                           "ttl_seconds",
		`{"lines":[` + strings.Repeat(`{"sku":"lamp","quantity":1},`, 20) + `{"sku":"lamp","quantity":1}]}`: "lines",
	} {
		p := problemOf(t, call(newHandler(newMemory()), "POST", "/v1/orders", body))
		assert.Equal(t, "invalid", p.Code, body)
		assert.Equal(t, field, p.Field, body)
	}
	for _, n := range []string{"-1", "101", "1.5", "1.0", "1e2", "1e400", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551617"} {
		m := newMemory()
		p := problemOf(t, call(newHandler(m), "POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1},{"sku":"lamp","quantity":`+n+`}]}`))
		assert.Equal(t, "lines[1].quantity", p.Field, n)
		assert.Zero(t, m.sections, n)
	}
}

// An order is another way to hold units and to try a code, and is bounded like those.
func TestBoundsOfOrders(t *testing.T) {
	t.Parallel()
	for code, refusal := range map[string]error{
		"too_many_holds": fmt.Errorf("%w: 7", domain.ErrTooManyHolds),
		"rate_limited":   &domain.LimitedError{After: time.Second},
	} {
		for path, body := range map[string]string{
			"/v1/items/lamp/reservations": `{"quantity":1}`,
			"/v1/orders":                  `{"lines":[{"sku":"lamp","quantity":1}],"coupon":"TEN","customer_id":"c"}`,
			"/v1/coupons/TEN/redemptions": `{"customer_id":"c"}`,
		} {
			m := newMemory()
			h := newHandler(m, func(c *handlers.Config) {
				refuse := func(context.Context, domain.Caller, func() error) error { return refusal }
				if code == "too_many_holds" {
					c.Service.Holding = refuse
				} else {
					c.Service.Guessing = refuse
				}
			})
			w := call(h, "POST", path, body)
			if code == "too_many_holds" && strings.Contains(path, "coupons") || code == "rate_limited" && strings.Contains(path, "items") {
				assert.Equal(t, 201, w.Code, "%s: %s", path, code)
				continue
			}
			assert.Equal(t, code, problemOf(t, w).Code, path)
			assert.Zero(t, m.sections, path)
		}
	}
}

// An order must not tell which codes are real either, whatever else is wrong with it.
func TestOrderWithUnknownCoupon(t *testing.T) {
	t.Parallel()
	answer := func(code, line string) string {
		w := call(newHandler(newMemory()), "POST", "/v1/orders", `{"lines":[`+line+`],"customer_id":"c","coupon":"`+code+`"}`, "X-Request-Id", "12345678")
		var buf bytes.Buffer
		require.NoError(t, w.Result().Write(&buf))
		return strings.ReplaceAll(buf.String(), code, "CODE")
	}
	for _, line := range []string{`{"sku":"lamp","quantity":1}`, `{"sku":"lamp","quantity":50}`} {
		over := answer("OVER", line)
		assert.Contains(t, over, "coupon_expired")
		assert.Equal(t, over, answer("NONE", line), line)
		assert.Equal(t, over, answer("-bad", line), line)
	}
}
