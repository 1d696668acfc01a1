package load

import (
	"fmt"
	"time"

	"fencepost/cmd/lab/internal/report"
)

// Options say what to race for and how. Instances, Limit, Buyers and Timeout are required.
type Options struct {
	Instances []string // base URLs
	Key       string   // API key; the race creates what it races for, which takes an admin's key
	Strategy  string   // empty: the service's own choice
	Fencing   string   // empty: the service's own choice

	Coupon bool // race for the uses of a coupon
	Items  int  // over how many items the attempts are spread; 0 is one
	Lines  int  // orders of so many items each, and a use of the coupon if there is one; 0: attempts for a single thing
	Limit  int  // units of each item, and uses of the coupon

	Buyers   int           // attempts at the same time; at least one for each instance
	Rate     float64       // an open loop: attempts in a second; 0: a closed loop, in which each buyer goes on when it has its answer
	Ramp     time.Duration // how long the rate rises, or the buyers come one after the other
	Requests int           // attempts in all; 0: as many as the time allows
	Retries  int           // how often an attempt is sent again that has no answer, or one that says so
	Timeout  time.Duration // no attempt begins after this
	Patience time.Duration // how long an answer is waited for; 0 is Patience

	Progress func(Progress) // called several times a second while the race runs
}

// Progress is how far a race has come.
type Progress struct {
	Answered, Created int
	Requests          int // 0: the time is the bound
	Elapsed           time.Duration
}

// String is the progress in words.
func (p Progress) String() string {
	n := report.Number(float64(p.Answered))
	if p.Requests > 0 {
		n += " of " + report.Number(float64(p.Requests))
	}
	return fmt.Sprintf("%s answered, %s created", n, report.Number(float64(p.Created)))
}

// String describes the race without its lock.
func (o Options) String() string {
	loop := "closed loop, " + report.Plural(o.Buyers, "buyer")
	if o.Rate > 0 {
		loop = fmt.Sprintf("open loop, %s attempts/s, at most %s at the same time", report.Number(o.Rate), report.Plural(o.Buyers, "buyer"))
	}
	if o.Requests > 0 {
		loop += ", " + report.Plural(o.Requests, "attempt")
	} else {
		loop += fmt.Sprintf(", for %s", o.Timeout)
	}
	if o.Ramp > 0 {
		loop += fmt.Sprintf(", ramp %s", o.Ramp)
	}
	if o.Retries > 0 {
		loop += fmt.Sprintf(", at most %d retries each", o.Retries)
	}
	items := report.Plural(max(1, o.Items), "item") + " of " + report.Plural(o.Limit, "unit")
	var goods string
	switch uses := report.Plural(o.Limit, "use"); {
	case o.Coupon && o.Lines == 0:
		goods = "a coupon of " + uses
	case o.Coupon:
		goods = fmt.Sprintf("orders of %s, %s, and a coupon of %s", report.Plural(o.Lines, "line"), items, uses)
	case o.Lines > 0:
		goods = fmt.Sprintf("orders of %s, %s", report.Plural(o.Lines, "line"), items)
	default:
		goods = items
	}
	return fmt.Sprintf("%s; %s; %s", goods, loop, report.Plural(len(o.Instances), "instance"))
}
