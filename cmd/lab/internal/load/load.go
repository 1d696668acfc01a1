// Package load has many buyers race for limited resources over every instance of the service, and takes the verdict from the
// database's own count. It speaks HTTP and imports nothing of the service: it sees what any client sees.
//
// It promises that every attempt is counted once, under the code of its last answer, and that it is sent once unless retries
// are asked for. Those carry the attempt's Idempotency-Key: a silent retry would hide what the lock could not do, and would
// sell twice where an answer was lost. A latency runs from the moment at which the attempt was due until its last answer, so
// that an open loop does not forget those that had to wait behind a slow one.
package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
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
	var loop, goods string
	switch {
	case o.Rate > 0:
		loop = fmt.Sprintf("open loop, %s attempts/s, at most %s at the same time", report.Number(o.Rate), report.Plural(o.Buyers, "buyer"))
	default:
		loop = "closed loop, " + report.Plural(o.Buyers, "buyer")
	}
	if o.Ramp > 0 {
		loop += fmt.Sprintf(", ramp %s", o.Ramp)
	}
	if o.Retries > 0 {
		loop += ", up to " + report.Plural(o.Retries, "retry")
		loop = strings.Replace(loop, "retrys", "retries", 1)
	}
	items := report.Plural(max(1, o.Items), "item") + " of " + report.Plural(o.Limit, "unit")
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

// Run holds one race. An error means that there was none. When ctx or the time-out ends, no further attempt is sent; those
// on their way are waited for, and the count is taken all the same.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Rate > 0 {
		most := pace{o.Rate, o.Ramp}.within(o.Timeout)
		if o.Requests == 0 {
			o.Requests = most
		}
	}
	c := newClient(o.Key, o.Buyers, o.Patience)
	defer c.CloseIdleConnections()
	if err := c.meet(ctx, o); err != nil {
		return Report{}, err
	}
	r := &race{Options: o, client: c, goods: newGoods(o)}
	if err := c.create(ctx, o, r.goods); err != nil {
		return Report{}, err
	}
	r.tally = newTally(o, len(r.resources()))
	r.run(ctx)
	return r.verdict(context.WithoutCancel(ctx)), nil // the end of ctx ends the race, not the count
}

// race is one under way.
type race struct {
	Options
	*client
	goods
	*tally
	began time.Time
}

func (r *race) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var buyers, watcher sync.WaitGroup
	barrier := make(chan struct{})
	for b := range r.Buyers {
		buyers.Go(func() {
			<-barrier
			if r.Rate > 0 {
				r.open(ctx, b)
			} else {
				r.closed(ctx, b)
			}
		})
	}
	finished := make(chan struct{})
	r.began = time.Now()
	watcher.Go(func() { r.watch(r.began, finished) })
	close(barrier)
	buyers.Wait()
	r.took = time.Since(r.began)
	close(finished)
	watcher.Wait()
}

// closed is a buyer who tries again when it has its answer.
func (r *race) closed(ctx context.Context, buyer int) {
	if !sleep(ctx, r.Ramp*time.Duration(buyer)/time.Duration(r.Buyers)) {
		return
	}
	for {
		n, ok := r.next()
		if !ok || ctx.Err() != nil {
			return
		}
		o := r.attempt(ctx, n, buyer, time.Now())
		r.add(o)
		if o.status == 0 || o.status >= 500 {
			// An instance that is down answers fastest of all. Without a pause it would use up the attempts.
			sleep(ctx, 200*time.Millisecond)
		}
	}
}

// open is a buyer who makes whichever attempt is due next. One that was due before any buyer was free begins at once, and
// its wait counts.
func (r *race) open(ctx context.Context, buyer int) {
	for {
		n, ok := r.next()
		if !ok {
			return
		}
		due := r.began.Add(pace{r.Rate, r.Ramp}.due(n - 1))
		late := time.Since(due)
		if !sleep(ctx, -late) {
			return
		}
		o := r.attempt(ctx, n, buyer, due)
		o.late = max(0, late)
		r.add(o)
	}
}

// outcome is what came of an attempt.
type outcome struct {
	answer
	code     string // of the last answer
	instance int    // that was asked last
	retried  []outcome
	wants    []int         // the resources
	unknown  bool          // it may have been carried out without anybody having been told
	late     time.Duration // behind its time when it began
	took     time.Duration // since it was due
	ended    time.Duration // since the race began
	ttl      time.Duration // of the hold; 0: it has none
}

// attempt makes the n-th attempt and sends it again while that may help, each time to another instance.
func (r *race) attempt(ctx context.Context, n, buyer int, due time.Time) outcome {
	r.start()
	request := r.goods.attempt(n)
	o := outcome{wants: request.wants}
	var key string
	if r.Retries > 0 {
		key = fmt.Sprintf("%s-%d", r.name, n)
	}
	for try := 0; ; try++ {
		var hold struct {
			CreatedAt time.Time `json:"created_at"`
			ExpiresAt time.Time `json:"expires_at"`
		}
		o.instance = (buyer + try) % len(r.Instances)
		var err error
		// A request on its way when the time is up has an outcome that only its answer tells.
		o.answer, err = r.send(context.WithoutCancel(ctx), http.MethodPost, r.Instances[o.instance]+request.path, key, request.body, &hold)
		o.code = code(o.answer, err)
		o.ttl = hold.ExpiresAt.Sub(hold.CreatedAt)
		again := retryable(o.answer, err)
		// A clear answer to the same key tells of the earlier sends as well.
		o.unknown = unknown(o.answer, o.code) || o.unknown && again
		if !again || try == r.Retries || !sleep(ctx, backoff(try, o.answer)) {
			break
		}
		o.retried = append(o.retried, outcome{code: o.code, instance: o.instance})
	}
	now := time.Now()
	o.took, o.ended = now.Sub(due), now.Sub(r.began)
	return o
}

// backoff is how long to wait before an attempt is sent again: as long as the answer says, or a moment that doubles.
func backoff(try int, a answer) time.Duration {
	d := max(a.retryAfter, 50*time.Millisecond<<min(try, 4))
	return d + rand.N(d/4) // those who were refused together do not come back together
}
