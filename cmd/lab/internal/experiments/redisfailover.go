package experiments

import (
	"context"
	"time"

	"github.com/google/uuid"

	"fencepost/cmd/lab/internal/servers"
)

var redisFailover = Experiment{
	Name:    "redis-failover",
	Claim:   "A replica that is promoted has not heard of the newest lock, and hands it out a second time, with the same token; the fence lets one of the two holders write and refuses the other.",
	Control: "With the fence off both write: the only unit is sold twice.",
	Run:     runRedisFailover,
}

func runRedisFailover(ctx context.Context, r *Run) error {
	r.say("starting a master, two replicas and three Sentinels")
	s, err := r.sentinels(ctx)
	if err != nil {
		return err
	}
	master := s.Redis[0]
	env := []string{"FENCEPOST_REDIS_URL=" + s.URL, "FENCEPOST_LEASE_TTL=30s"} // renewed after ten seconds, so nobody is warned
	wire, err := r.wire()
	if err != nil {
		return err
	}
	next, err := r.startOne(ctx, env...)
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, append(env, "FENCEPOST_REVIEW_TIME=10ms")...)
	if err != nil {
		return err
	}
	var duels []*duel
	client := r.redis(master)
	for _, fencing := range []string{enforced, off} {
		d, err := r.duel(ctx, wire, next, "redis", fencing, presentation)
		if err != nil {
			return err
		}
		// Both items were locked seven times before, as the replicas know.
		if err := client.Set(ctx, counterOf(d.sku), 7, 0).Err(); err != nil {
			return err
		}
		duels = append(duels, d)
	}
	if err := client.Wait(ctx, len(s.Redis)-1, patience).Err(); err != nil {
		return err
	}
	if err := servers.CutReplication(ctx, master, s.Redis[1:]...); err != nil {
		return err
	}
	for _, d := range duels {
		if err := d.begin(ctx, holder); err != nil {
			return err
		}
	}
	r.say("the master is killed, and a replica promoted")
	if err := master.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	for _, d := range duels {
		err := until(ctx, "the promoted replica hands out the lock", func() (bool, error) {
			d.next = buy(ctx, next, d.sku)
			return d.next.made(), nil
		})
		if err != nil {
			return err
		}
	}
	for _, d := range duels {
		if err := d.arrive(ctx, r, wire); err != nil {
			return err
		}
		if err := d.end(ctx, r); err != nil {
			return err
		}
		d.draw(r, "the master with its lock is killed; no replica knows of the lock", killed)
		if d.fencing == off {
			r.claims(d.first.token() != "" && d.first.token() == d.next.token(), "two holders have the lock, with the same token",
				"the first has token %s from the old master, the second %s from the new one, %s after the kill",
				d.first.token(), d.next.token(), lasted(d.next.at.Sub(killed)))
		}
		d.verdict(r)
	}
	return nil
}

// sentinels starts a Redis that fails over, for this run alone.
func (r *Run) sentinels(ctx context.Context) (*servers.Sentinels, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := r.lab.StartSentinels(ctx, "s"+uuid.NewString())
	if err != nil {
		return nil, err
	}
	for _, server := range append(s.Redis, s.Sentinels...) {
		r.atEnd(func(context.Context) error { return server.Kill() })
	}
	return s, servers.InSync(ctx, s.Redis[1:]...)
}
