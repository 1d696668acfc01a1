package domain

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Coupon can be redeemed a limited number of times.
type Coupon struct {
	Code             string
	MaxRedemptions   int64
	PerCustomerLimit int64     // 0: no limit
	ValidFrom        time.Time // zero: always
	ValidUntil       time.Time // zero: for ever; otherwise the first moment at which it is not valid any more
	Redeemed         int64
}

// RedemptionState is redeemed until the use is given back.
type RedemptionState string

// The states of a redemption.
const (
	Redeemed   RedemptionState = "redeemed"
	RolledBack RedemptionState = "rolled_back"
)

// Redemption is one use of a coupon.
type Redemption struct {
	ID            string
	Code          string
	CustomerID    string
	ReservationID string // empty: the use belongs to no reservation
	State         RedemptionState
	CreatedBy     string
	CreatedAt     time.Time
	SettledAt     time.Time // zero while redeemed
}

// Redeem takes one use. customerUses is how often this customer has used the coupon already.
func (c *Coupon) Redeem(customerUses int64, now time.Time) error {
	switch {
	case !c.ValidFrom.IsZero() && now.Before(c.ValidFrom), !c.ValidUntil.IsZero() && !now.Before(c.ValidUntil):
		return fmt.Errorf("redeeming %s: %w", c.Code, ErrCouponExpired)
	case c.Redeemed >= c.MaxRedemptions:
		return fmt.Errorf("redeeming %s: %w", c.Code, ErrCouponExhausted) // how often it was used is the shop's own affair
	case c.PerCustomerLimit > 0 && customerUses >= c.PerCustomerLimit:
		return fmt.Errorf("redeeming %s: %w", c.Code, ErrCustomerLimit)
	}
	c.Redeemed++
	return nil
}

// GiveBack undoes one use.
func (c *Coupon) GiveBack() error {
	if c.Redeemed < 1 {
		return fmt.Errorf("giving back a use of %s, which has none: %w", c.Code, ErrCountersCorrupted)
	}
	c.Redeemed--
	return nil
}

var codePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)

// CheckCode tells whether code can name a coupon. Codes are taken to the letter: upper and lower case differ.
func CheckCode(field, code string) error {
	if !codePattern.MatchString(code) {
		return Invalid(field, "must be 1 to 32 letters, digits, dashes or underscores and begin with a letter or digit")
	}
	return nil
}

// codeLetters are 32 that nobody takes for one another: no 0 or O, no 1 or I.
const codeLetters = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"

// newCode makes a code of 80 random bits, in groups that can be read out.
func newCode() string {
	var random [16]byte
	rand.Read(random[:]) // never fails
	var code strings.Builder
	for i, b := range random {
		if i > 0 && i%4 == 0 {
			code.WriteByte('-')
		}
		code.WriteByte(codeLetters[b%32]) // 256 is a multiple of 32, so all letters are equally likely
	}
	return code.String()
}

// checkTime accepts what RFC 3339 can write, whose years have four digits: any other could be stored and never be shown. It
// is the year in UTC that counts; an offset can carry a time of the year 9999 beyond it. The zero time says nothing.
func checkTime(field string, t time.Time) error {
	if year := t.UTC().Year(); !t.IsZero() && (year < 1 || year > 9999) {
		return Invalid(field, "must lie in the years 1 to 9999")
	}
	return nil
}
