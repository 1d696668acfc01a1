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
	"sync"
	"time"
)

// Run holds one race. An error means that there was none. When ctx or the time-out ends, no further attempt is sent; those
// on their way are waited for, and the count is taken all the same.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Rate > 0 && o.Requests == 0 {
		o.Requests = pace{o.Rate, o.Ramp}.within(o.Timeout) // an open loop knows beforehand what is due
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
