package experiments

import (
	"context"
	"time"
)

var redlockClock = Experiment{
	Name:    "redlock-clock",
	Claim:   "When a majority of Redlock's nodes drop a lock early, as they do when their clocks jump, two holders believe in it; the fence refuses the older one's write.",
	Control: "With the fence off both write: the only unit is sold twice.",
	Run:     runRedlockClock,
}

func runRedlockClock(ctx context.Context, r *Run) error {
	const term = "FENCEPOST_LEASE_TTL=30s" // first extended after ten seconds, so nobody is warned
	wire, err := r.wire()
	if err != nil {
		return err
	}
	next, err := r.startOne(ctx, term)
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, term, "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return err
	}
	for _, fencing := range []string{enforced, off} {
		d, err := r.duel(ctx, wire, next, "redlock", fencing, presentation)
		if err != nil {
			return err
		}
		if err := d.begin(ctx, holder); err != nil {
			return err
		}
		// Three clocks of five jump: to each of these nodes the term is over. (A real jump would hit everything else on this
		// machine as well.)
		r.say("three of five nodes drop the lock")
		for _, name := range []string{"redis-1", "redis-2", "redis-3"} {
			key := "fencepost:redlock:{item/" + d.sku + "}:lock"
			if err := r.redis(r.lab.Server(name)).PExpire(ctx, key, time.Millisecond).Err(); err != nil {
				return err
			}
		}
		jumped := time.Now()
		if d.next, err = mustBuy(ctx, next, d.sku); err != nil {
			return err
		}
		if err := d.arrive(ctx, r, wire); err != nil {
			return err
		}
		if err := d.end(ctx, r); err != nil {
			return err
		}
		d.draw(r, "three of the five nodes forget the lock, 30 s early", jumped)
		d.verdict(r)
	}
	return nil
}
