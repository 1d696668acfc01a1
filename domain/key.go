package domain

import "strings"

// Kind says what sort of thing a resource is.
type Kind string

// The kinds of resource. Each is also the name of the prefix of its keys.
const (
	KindItem   Kind = "item"
	KindCoupon Kind = "coupon"
)

// Key names a resource: what a lock protects and a fence guards. It is always the thing that carries the limit:
// "item/<sku>" or "coupon/<code>".
type Key string

// ItemKey is the resource that guards an item's stock.
func ItemKey(sku string) Key { return Key(string(KindItem) + "/" + sku) }

// CouponKey is the resource that guards a coupon's uses.
func CouponKey(code string) Key { return Key(string(KindCoupon) + "/" + code) }

// Kind is the part before the slash.
func (k Key) Kind() Kind {
	kind, _, _ := strings.Cut(string(k), "/")
	return Kind(kind)
}

// Name is the part behind the slash: the SKU or the code.
func (k Key) Name() string {
	_, name, _ := strings.Cut(string(k), "/")
	return name
}

// valid tells whether a resource can have this key.
func (k Key) valid() bool {
	switch k.Kind() {
	case KindItem:
		return CheckSKU("", k.Name()) == nil
	case KindCoupon:
		return CheckCode("", k.Name()) == nil
	}
	return false
}

// Scope is the part of the system that one lock authority is in charge of: ScopeInventory, ScopeCoupons, or the key of a
// single resource that has a strategy of its own.
type Scope string

// The scopes that every resource without a strategy of its own belongs to.
const (
	ScopeInventory Scope = "inventory"
	ScopeCoupons   Scope = "coupons"
)
