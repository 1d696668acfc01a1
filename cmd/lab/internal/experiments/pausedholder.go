package experiments

import (
	"context"
	"time"
)

var pausedHolder = Experiment{
	Name:    "paused-holder",
	Claim:   "A holder that is paused for longer than its lease, as by a garbage collection, is refused when its message arrives at last: its token is stale. So it is with redis, redlock and zookeeper.",
	Control: "With the fence off, the write that was on its way when the holder was paused lands after its successor's: the only unit is sold twice.",
	Run:     runPausedHolder,
}

// runPausedHolder stops one instance while it holds the locks of six items, with a message to PostgreSQL about each on its way.
// What has been sent nobody can call back. At any other moment the service would notice by its clock that it was late, before it
// sends anything; so where there is no fence, the message is the one after its last look at the clock.
func runPausedHolder(ctx context.Context, r *Run) error {
	const term = "FENCEPOST_LEASE_TTL=1500ms"
	wire, err := r.wire()
	if err != nil {
		return err
	}
	next, err := r.startOne(ctx, term, "FENCEPOST_LOCK_WAIT=12s")
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, term, "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return err
	}
	var duels []*duel
	for _, strategy := range []string{"redis", "redlock", "zookeeper"} {
		for _, kind := range []struct{ fencing, message string }{{enforced, presentation}, {off, write}} {
			d, err := r.duel(ctx, wire, next, strategy, kind.fencing, kind.message)
			if err != nil {
				return err
			}
			duels = append(duels, d)
		}
	}
	r.say("a holder has six locks, and is paused")
	for _, d := range duels {
		if err := d.begin(ctx, holder); err != nil {
			return err
		}
	}
	if err := holder.Pause(); err != nil {
		return err
	}
	paused := time.Now()
	r.say("its leases end, and another instance sells the units")
	for _, d := range duels {
		if d.next, err = mustBuy(ctx, next, d.sku); err != nil {
			return err
		}
	}
	for _, d := range duels {
		if err := d.arrive(ctx, r, wire); err != nil {
			return err
		}
	}
	r.say("the holder goes on")
	if err := holder.Resume(); err != nil {
		return err
	}
	for _, d := range duels {
		if err := d.end(ctx, r); err != nil {
			return err
		}
		d.verdict(r)
		if d.strategy == "redis" {
			d.draw(r, "is paused (SIGSTOP)", paused)
		}
	}
	return nil
}
