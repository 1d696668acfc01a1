package load

import (
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
)

// goods are what is raced for: items, the uses of a coupon, or both together in orders.
type goods struct {
	name   string // the beginning of all names
	skus   []string
	coupon string // empty: none
	lines  int    // of an order; 0: no orders
}

// newGoods names them. The names are new each time, so that no race counts what another has sold.
func newGoods(o Options) goods {
	g := goods{name: "load-" + strings.ToLower(rand.Text()[:12]), lines: o.Lines}
	if o.Coupon {
		g.coupon = g.name
	}
	switch {
	case o.Coupon && o.Lines == 0:
	case o.Items <= 1:
		g.skus = []string{g.name}
	default:
		digits := len(fmt.Sprint(o.Items))
		for i := range o.Items {
			g.skus = append(g.skus, fmt.Sprintf("%s-%0*d", g.name, digits, i+1))
		}
	}
	return g
}

// resources are the keys of all goods, the coupon's last.
func (g goods) resources() (keys []string) {
	for _, sku := range g.skus {
		keys = append(keys, "item/"+sku)
	}
	if g.coupon != "" {
		keys = append(keys, "coupon/"+g.coupon)
	}
	return keys
}

// String names all of them as one.
func (g goods) String() string {
	keys := g.resources()
	switch {
	case len(keys) == 1:
		return keys[0]
	case g.coupon == "":
		return fmt.Sprintf("item/%s-*", g.name)
	case len(g.skus) == 1:
		return strings.Join(keys, " and ")
	}
	return fmt.Sprintf("item/%s-* and coupon/%s", g.name, g.coupon)
}

// request is one attempt: where it goes, what it says, and which of the resources it wants one of.
type request struct {
	path  string
	body  map[string]any
	wants []int
}

// attempt makes the n-th attempt. Each is for another customer. An order has its lines in any order: to lock them in the
// same one is the service's task.
func (g goods) attempt(n int) request {
	r := request{body: map[string]any{"customer_id": fmt.Sprintf("buyer-%d", n)}}
	switch {
	case g.lines > 0:
		r.path = "/v1/orders"
		var lines []map[string]any
		for _, i := range mathrand.Perm(len(g.skus))[:g.lines] {
			lines = append(lines, map[string]any{"sku": g.skus[i], "quantity": 1})
			r.wants = append(r.wants, i)
		}
		r.body["lines"] = lines
		if g.coupon != "" {
			r.body["coupon"] = g.coupon
			r.wants = append(r.wants, len(g.skus))
		}
	case g.coupon != "":
		r.path, r.wants = "/v1/coupons/"+g.coupon+"/redemptions", []int{0}
	default:
		i := mathrand.IntN(len(g.skus))
		r.path, r.wants = "/v1/items/"+g.skus[i]+"/reservations", []int{i}
		r.body["quantity"] = 1
	}
	return r
}
