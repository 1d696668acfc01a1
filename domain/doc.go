// Package domain holds what Fencepost is about: items and coupons that can run out, the reservations and redemptions that
// take from them, the rules, the errors, and the use cases. It needs nothing but the standard library, and it knows neither
// how a lock works nor how a row is stored: those come in through the two ports Guard and Store.
//
// It promises that every change of a limited resource is decided from state read inside a guarded section, is written as
// one new absolute state, and leaves one ledger entry that explains it.
package domain
