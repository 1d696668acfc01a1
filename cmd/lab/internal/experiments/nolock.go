package experiments

import (
	"context"

	"fencepost/cmd/lab/internal/report"
)

var noLock = Experiment{
	Name:    "no-lock",
	Claim:   "Reading, deciding and writing without a lock sells more than there is, even in a single process.",
	Control: "The same race under any real lock sells exactly what there is.",
	Run:     runNoLock,
}

func runNoLock(ctx context.Context, r *Run) error {
	running, err := r.start(ctx, 2)
	if err != nil {
		return err
	}
	const stock, requests = 100, 300
	for n := 1; n <= len(running); n++ {
		r.say("without a lock")
		raced, err := r.race(ctx, running[:n], "none", off, stock, requests)
		if err != nil {
			return err
		}
		r.raced("none", "none, "+report.Plural(n, "instance"), raced)
		r.claims(raced.Oversold > 0, "more units are sold than there are", "%s: %s", report.Plural(n, "instance"), raced.Verdict)
	}
	for _, strategy := range []string{"postgres", "redis", "redlock", "zookeeper"} {
		r.say("under " + strategy)
		raced, err := r.race(ctx, running, strategy, enforced, stock, requests)
		if err != nil {
			return err
		}
		r.raced(strategy, strategy, raced)
		r.controls(exact(raced, stock), "every unit is sold, and none twice", "%s: %s", strategy, raced.Verdict)
	}
	return nil
}
