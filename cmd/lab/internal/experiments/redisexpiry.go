package experiments

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

var redisExpiry = Experiment{
	Name:    "redis-expiry",
	Claim:   "The expiry of the key (PX) frees the lock of a holder that has crashed, and takes it from one that is only slow.",
	Control: "A slow holder that renews its lease keeps it as long as it works.",
	Run:     runRedisExpiry,
}

func runRedisExpiry(ctx context.Context, r *Run) error {
	term := 2 * time.Second
	if r.short {
		term = 700 * time.Millisecond
	}
	env := []string{"FENCEPOST_INVENTORY_LOCK=redis", "FENCEPOST_LEASE_TTL=" + term.String(), "FENCEPOST_LOCK_WAIT=14s"}
	next, err := r.startOne(ctx, env...)
	if err != nil {
		return err
	}
	r.Header = []string{"holder", "term", "the next one waits"}
	r.BarUnit = "seconds until the next one has the lock"
	note := func(holder string, waited time.Duration) {
		r.row(holder, lasted(term), lasted(waited))
		r.bar(holder, "", waited.Seconds())
	}

	r.say("a holder crashes")
	review := "FENCEPOST_REVIEW_TIME=" + (3 * term).String()
	crashing, err := r.startOne(ctx, append(env, review)...)
	if err != nil {
		return err
	}
	sku, err := r.item(ctx, next, 10, "", enforced)
	if err != nil {
		return err
	}
	buyAside(ctx, crashing, sku)
	server := r.redis(r.lab.Server("redis-1"))
	if err := r.locked(ctx, server, sku); err != nil {
		return err
	}
	if err := crashing.Kill(); err != nil {
		return err
	}
	left, err := server.PTTL(ctx, lockOf(sku)).Result()
	if err != nil {
		return err
	}
	after, err := mustBuy(ctx, next, sku)
	if err != nil {
		return err
	}
	note("crashed (SIGKILL)", after.Took)
	r.claims(left > 0 && after.Took > left/2 && after.Took < left+grace, "the next one gets the lock when the crashed holder's term ends",
		"%s of the term were left; the next one had bought after %s", lasted(left), lasted(after.Took))

	r.say("a holder is slow, and does not renew its lease")
	if err := r.slowWithout(ctx, server, term, note); err != nil {
		return err
	}

	r.say("a holder is slow, and renews its lease")
	slow, err := r.startOne(ctx, append(env, review)...)
	if err != nil {
		return err
	}
	if sku, err = r.item(ctx, next, 10, "", enforced); err != nil {
		return err
	}
	working := buyAside(ctx, slow, sku)
	if err := r.locked(ctx, server, sku); err != nil {
		return err
	}
	waited, err := mustBuy(ctx, next, sku)
	if err != nil {
		return err
	}
	done, err := await(ctx, "the slow holder's answer", working)
	if err != nil {
		return err
	}
	note("slow, renewed", waited.Took)
	r.controls(done.made() && waited.Took > 2*term, "the next one waits until the slow holder has done its work",
		"the holder worked for %s and is answered %s; the next one waited %s", lasted(3*term), done, lasted(waited.Took))
	return nil
}

// slowWithout is the usual client: SET NX PX, work that takes longer than was thought, and a DEL if the key is still its own.
func (r *Run) slowWithout(ctx context.Context, server *redis.Client, term time.Duration, note func(string, time.Duration)) error {
	key := "experiment:" + uuid.NewString()
	if err := server.SetArgs(ctx, key, "slow", redis.SetArgs{Mode: "NX", TTL: term}).Err(); err != nil {
		return err
	}
	began := time.Now()
	err := until(ctx, "the second client has the lock", func() (bool, error) { return server.SetNX(ctx, key, "next", time.Minute).Result() })
	if err != nil {
		return err
	}
	waited := time.Since(began)
	note("slow, not renewed", waited)
	// The slow one is still at work. It learns of it when it gives the lock back.
	owner, err := server.Get(ctx, key).Result()
	if err != nil {
		return err
	}
	r.claims(owner == "next" && waited < term+grace, "while the slow one is at work, the next one gets the lock",
		"the term was %s; the next one had the lock after %s, and its key is now %q", lasted(term), lasted(waited), owner)
	return server.Del(ctx, key).Err()
}

// lockOf is the key that the strategy redis keeps for an item.
func lockOf(sku string) string { return "fencepost:{item/" + sku + "}:lock" }

// counterOf is the key from which it draws the item's tokens.
func counterOf(sku string) string { return "fencepost:{item/" + sku + "}:token" }

// locked waits until somebody has the lock of the item.
func (r *Run) locked(ctx context.Context, server *redis.Client, sku string) error {
	return until(ctx, "the holder has the lock", func() (bool, error) {
		n, err := server.Exists(ctx, lockOf(sku)).Result()
		return n == 1, err
	})
}
