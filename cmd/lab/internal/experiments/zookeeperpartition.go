package experiments

import (
	"context"
	"time"
)

var zookeeperPartition = Experiment{
	Name:    "zookeeper-partition",
	Claim:   "A holder that is cut off from ZooKeeper loses the lock, and its late write is refused.",
	Control: "With the fence off, the write that was on its way lands after its successor's: the only unit is sold twice.",
	Run:     runZookeeperPartition,
}

func runZookeeperPartition(ctx context.Context, r *Run) error {
	const term = "FENCEPOST_LEASE_TTL=1s"
	wire, err := r.wire()
	if err != nil {
		return err
	}
	link, err := r.link(r.lab.Variable("FENCEPOST_ZOOKEEPER_SERVERS"))
	if err != nil {
		return err
	}
	next, err := r.startOne(ctx, term)
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, term, "FENCEPOST_REVIEW_TIME=10ms", "FENCEPOST_ZOOKEEPER_SERVERS="+link.address)
	if err != nil {
		return err
	}
	var duels []*duel
	for _, kind := range []struct{ fencing, message string }{{enforced, presentation}, {off, write}} {
		d, err := r.duel(ctx, wire, next, "zookeeper", kind.fencing, kind.message)
		if err != nil {
			return err
		}
		duels = append(duels, d)
	}
	for _, d := range duels {
		if err := d.begin(ctx, holder); err != nil {
			return err
		}
	}
	r.say("the holder is cut off from ZooKeeper")
	link.cut()
	cut := time.Now()
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
	link.heal()
	for _, d := range duels {
		if err := d.end(ctx, r); err != nil {
			return err
		}
		d.draw(r, "is cut off from ZooKeeper", cut)
		d.verdict(r)
	}
	return nil
}
