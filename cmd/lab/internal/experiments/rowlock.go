package experiments

import "context"

var rowLock = Experiment{
	Name:    "row-lock",
	Claim:   "SELECT … FOR UPDATE is exact over several instances, with nothing installed but PostgreSQL.",
	Control: "The same instances without the row lock sell more than there is.",
	Run:     runRowLock,
}

func runRowLock(ctx context.Context, r *Run) error {
	// What is not configured cannot help.
	running, err := r.start(ctx, 3, "FENCEPOST_REDIS_URL=", "FENCEPOST_REDLOCK_URLS=", "FENCEPOST_ZOOKEEPER_SERVERS=")
	if err != nil {
		return err
	}
	const stock, requests = 100, 300
	for _, fencing := range []string{enforced, off} {
		r.say("under row locks, fencing " + fencing)
		report, err := r.race(ctx, running, "postgres", fencing, stock, requests)
		if err != nil {
			return err
		}
		r.raced("postgres", "postgres, fencing "+fencing, report)
		r.claims(exact(report, stock), "every unit is sold, and none twice, with the fence and without it", "fencing %s: %s", fencing, report.Verdict)
	}
	r.say("without a lock")
	report, err := r.race(ctx, running, "none", off, stock, requests)
	if err != nil {
		return err
	}
	r.raced("none", "none", report)
	r.controls(report.Oversold > 0, "more units are sold than there are", "%s", report.Verdict)
	return nil
}
