package experiments

import (
	"context"
	"time"

	"fencepost/cmd/lab/internal/instances"
)

var counterLoss = Experiment{
	Name:    "counter-loss",
	Claim:   "When Redis forgets everything (FLUSHALL) its tokens begin again at 1, the fence refuses them, and the service heals by itself: it raises the epoch and goes on.",
	Control: "Without the healing, which is to say when no epoch can be raised, the item is refused again and again: its tokens would have to catch up first.",
	Run:     runCounterLoss,
}

func runCounterLoss(ctx context.Context, r *Run) error {
	instance, err := r.startOne(ctx, "FENCEPOST_INVENTORY_LOCK=redis")
	if err != nil {
		return err
	}
	r.Header = []string{"", "before", "after FLUSHALL", "refused", "sold"}
	lost, err := r.forget(ctx, instance, 1)
	if err != nil {
		return err
	}
	healed := lost.after[0]
	r.row("the service", lost.before, healed, len(lost.refusals), lost.sold)
	r.claims(healed.made() && len(lost.refusals) > 0 && lost.before.epoch() == "1" && healed.epoch() == "2" && lost.sold == 2,
		"the fence refuses the token that begins again, and the same request is served in the next epoch",
		"%s before, %s after, in %s; refused %s with the fence at %s", lost.before, healed, lasted(healed.Took), lost.refused().Presented, lost.refused().Current)
	t := r.timeline("the loss, and the healing")
	t.at(lost.before.at, Accept, "service", "sells with token %s", lost.before.token())
	t.at(lost.at, Fault, "Redis", "forgets locks and counters (FLUSHALL)")
	t.at(lost.refused().At, Refuse, "service", "presents token %s, and is refused: the fence is at %s", lost.refused().Presented, lost.refused().Current)
	t.at(healed.at, Accept, "service", "has raised the epoch, and has sold with token %s", healed.token())

	// The owner of this database takes the right from the service to begin a new epoch.
	r.say("the control: no epoch can be raised")
	err = r.database.Exec(ctx, `REVOKE EXECUTE ON FUNCTION raise_epoch(text, bigint), claim_authority(text, text, text, text) FROM fencepost_service`)
	if err != nil {
		return err
	}
	const tries = 10
	if lost, err = r.forget(ctx, instance, tries); err != nil {
		return err
	}
	refused := 0
	for _, s := range lost.after {
		if s.Code == "stale_fencing_token" {
			refused++
		}
	}
	r.row("no epoch can be raised", lost.before, lost.after[tries-1], len(lost.refusals), lost.sold)
	r.controls(refused == tries && len(lost.refusals) == tries && lost.sold == 1, "every request is refused, because its token is older than the fence",
		"%d of %d are refused; the last one presented %s, with the fence at %s", refused, tries, lost.refused().Presented, lost.refused().Current)
	return nil
}

// loss is what comes of a Redis that forgets.
type loss struct {
	before   sale
	at       time.Time
	after    []sale
	refusals []recorded
	sold     int64
}

// refused is the newest refusal, if there is one.
func (l loss) refused() (last recorded) {
	if n := len(l.refusals); n > 0 {
		last = l.refusals[n-1]
	}
	return last
}

// forget sells a unit of an item that was locked a million times, has Redis forget everything, and tries to sell more.
func (r *Run) forget(ctx context.Context, instance *instances.Instance, tries int) (l loss, err error) {
	sku, err := r.item(ctx, instance, 100, "", enforced)
	if err != nil {
		return l, err
	}
	server := r.redis(r.lab.Server("redis-1"))
	if err := server.Set(ctx, counterOf(sku), 1_000_000, 0).Err(); err != nil {
		return l, err
	}
	if l.before, err = mustBuy(ctx, instance, sku); err != nil {
		return l, err
	}
	// The instance keeps its lock for a moment, and with it its token.
	err = until(ctx, "the release of the lock", func() (bool, error) {
		held, err := server.Exists(ctx, lockOf(sku)).Result()
		return held == 0, err
	})
	if err != nil {
		return l, err
	}
	if err := server.FlushAll(ctx).Err(); err != nil {
		return l, err
	}
	l.at = time.Now()
	for range tries {
		l.after = append(l.after, buy(ctx, instance, sku))
	}
	if l.refusals, err = r.refusals(ctx, sku); err != nil {
		return l, err
	}
	l.sold, err = r.sold(ctx, sku)
	return l, err
}
