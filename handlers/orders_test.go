package handlers_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
