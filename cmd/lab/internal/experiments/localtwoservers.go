package experiments

import "context"

var localTwoServers = Experiment{
	Name:    "local-two-servers",
	Claim:   "A lock inside a process does not work across servers: two instances with a mutex each sell more than there is.",
	Control: "One instance with the same mutex sells exactly what there is: it is the second server that breaks it.",
	Run:     runLocalTwoServers,
}

func runLocalTwoServers(ctx context.Context, r *Run) error {
	running, err := r.start(ctx, 2, "FENCEPOST_MAX_BATCH=1") // a lock for each request, so that there is much to go wrong
	if err != nil {
		return err
	}
	const stock, requests = 100, 400
	r.say("two instances")
	two, err := r.race(ctx, running, "local", off, stock, requests)
	if err != nil {
		return err
	}
	r.say("one instance")
	one, err := r.race(ctx, running[:1], "local", off, stock, requests)
	if err != nil {
		return err
	}
	r.raced("local", "2 instances", two)
	r.raced("local", "1 instance", one)
	r.claims(two.Oversold > 0, "two instances sell more units than there are", "%s", two.Verdict)
	r.controls(exact(one, stock), "one instance sells every unit, and none twice", "%s", one.Verdict)
	return nil
}
