package experiments

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"fencepost/cmd/lab/internal/instances"
)

var redlockMajority = Experiment{
	Name:    "redlock-majority",
	Claim:   "Redlock goes on when two of its five masters are lost, and refuses when three are: nothing is written without a majority.",
	Control: "A single Redis refuses everything after the loss of one.",
	Run:     runRedlockMajority,
}

func runRedlockMajority(ctx context.Context, r *Run) error {
	const wait = 2 * time.Second
	instance, err := r.startOne(ctx, "FENCEPOST_LOCK_WAIT="+wait.String())
	if err != nil {
		return err
	}
	r.Header = []string{"lock", "servers", "lost", "answers", "the slowest after", "sold"}
	many, err := r.item(ctx, instance, 1000, "redlock", enforced)
	if err != nil {
		return err
	}
	single, err := r.item(ctx, instance, 1000, "redis", enforced)
	if err != nil {
		return err
	}
	ask := func(strategy, sku string, servers, lost int) (served, refused bool, saw string, err error) {
		before, err := r.sold(ctx, sku)
		if err != nil {
			return false, false, "", err
		}
		made, turnedAway, slowest := serve(ctx, instance, sku)
		after, err := r.sold(ctx, sku)
		r.row(strategy, servers, lost, fmt.Sprintf("%d × 201, %d × 503", made, turnedAway), lasted(slowest), after-before)
		saw = fmt.Sprintf("%d of %d are served, %d answered 503, %d written; the slowest after %s", made, requests, turnedAway, after-before, lasted(slowest))
		return made == requests && after-before == requests, turnedAway == requests && after == before && slowest < wait+time.Second, saw, err
	}
	lost := 0
	for _, names := range [][]string{nil, {"redis-4", "redis-5"}, {"redis-3"}} {
		if err := r.kill(names...); err != nil {
			return err
		}
		lost += len(names)
		r.say(fmt.Sprintf("%d of 5 masters are lost", lost))
		served, refused, saw, err := ask("redlock", many, 5, lost)
		if err != nil {
			return err
		}
		if lost < 3 {
			r.claims(served, fmt.Sprintf("with %d of 5 lost, every request is served", lost), "%s", saw)
		} else {
			r.claims(refused, "with 3 of 5 lost, every request is refused and nothing is written", "%s", saw)
		}
	}
	r.say("the single Redis is lost")
	if err := r.kill("redis-1"); err != nil {
		return err
	}
	_, refused, saw, err := ask("redis", single, 1, 1)
	if err != nil {
		return err
	}
	r.controls(refused, "a single Redis that is lost means that every request is refused", "%s", saw)
	return nil
}

const requests = 10

// serve sends requests one after the other.
func serve(ctx context.Context, at *instances.Instance, sku string) (made, refused int, slowest time.Duration) {
	for range requests {
		s := buy(ctx, at, sku)
		slowest = max(slowest, s.Took)
		switch {
		case s.made():
			made++
		case s.Status == http.StatusServiceUnavailable:
			refused++
		}
	}
	return made, refused, slowest
}
