package experiments

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/shop"
)

var switchStrategy = Experiment{
	Name:    "switch",
	Claim:   "The strategy can be changed under load: nothing that was acknowledged is lost, and a write that was begun under the old strategy is refused, however large its token, because its epoch is over.",
	Control: "Without epochs the larger number wins: the stale write is accepted, and the holder under the new strategy is thrown out.",
	Run:     runSwitch,
}

func runSwitch(ctx context.Context, r *Run) error {
	r.Header = []string{"", "old strategy", "new strategy", "sold"}
	if err := r.switchUnderLoad(ctx); err != nil {
		return err
	}
	t := r.timeline("with epochs")
	taken, err := r.takeover(ctx, t)
	if err != nil {
		return err
	}
	r.row("a write from before the switch", taken.old, taken.fresh, fmt.Sprintf("%d of 1", taken.sold))
	r.claims(!taken.old.made() && taken.refused.byFence() && taken.fresh.made() && taken.sold == 1,
		"a write from before the switch is refused, and the new holder sells the unit",
		"the old holder has token %s and is answered %s; PostgreSQL's epoch is that of %s; the new holder is answered %s; sold %d of 1",
		taken.refused.presented(), taken.old, taken.refused.current(), taken.fresh, taken.sold)

	r.say("the control: a database that does not know of epochs")
	if err := r.forgetEpochs(ctx); err != nil {
		return err
	}
	t = r.timeline("without epochs")
	if taken, err = r.takeover(ctx, t); err != nil {
		return err
	}
	var by string
	err = r.ask(ctx, `SELECT COALESCE(max(strategy), 'nobody') FROM ledger WHERE resource = 'item/' || $1 AND kind = 'hold'`, []any{taken.sku}, &by)
	if err != nil {
		return err
	}
	r.row("the same without epochs", taken.old, taken.fresh, fmt.Sprintf("%d of 1", taken.sold))
	r.controls(taken.old.made() && by == "redis" && !taken.fresh.made(), "the stale write is accepted, and the new holder refused",
		"the old holder is answered %s; the new holder %s; the unit was sold under %s, which was not in charge any more", taken.old, taken.fresh, by)
	return nil
}

// switchUnderLoad has an instance with another strategy start while others sell.
func (r *Run) switchUnderLoad(ctx context.Context) error {
	r.say("the strategy is changed under load")
	before, err := r.start(ctx, 2, "FENCEPOST_INVENTORY_LOCK=redis")
	if err != nil {
		return err
	}
	sku, err := r.item(ctx, before[0], 1_000_000, "", enforced)
	if err != nil {
		return err
	}
	old := shop.StartCrowd(ctx, crowdSize, urls(before), sku)
	defer old.Stop()
	if err := answers(ctx, old, "created", 200); err != nil {
		return err
	}
	after, err := r.start(ctx, 1, "FENCEPOST_INVENTORY_LOCK=zookeeper")
	if err != nil {
		return err
	}
	fresh := shop.StartCrowd(ctx, crowdSize, urls(after), sku)
	defer fresh.Stop()
	if err := errors.Join(answers(ctx, fresh, "created", 200), answers(ctx, old, "strategy_superseded", 20)); err != nil {
		return err
	}
	old.Stop()
	fresh.Stop()
	oldAnswers, freshAnswers := old.Codes, fresh.Codes
	sold, err := r.sold(ctx, sku)
	if err != nil {
		return err
	}
	var counted int64
	if err := r.ask(ctx, `SELECT reserved FROM items WHERE resource = 'item/' || $1`, []any{sku}, &counted); err != nil {
		return err
	}
	made := int64(oldAnswers["created"] + freshAnswers["created"])
	r.row("under load", fmt.Sprintf("%d × 201, %d × superseded", oldAnswers["created"], oldAnswers["strategy_superseded"]),
		fmt.Sprintf("%d × 201", freshAnswers["created"]), sold)
	r.claims(made == sold && counted == sold && oldAnswers["strategy_superseded"] > 0 && freshAnswers["created"] > 0,
		"both are in use for a while, nothing that was acknowledged is lost, and the counters are right",
		"%d acknowledged, %d stored, counted %d; the old instances are told strategy_superseded %d times",
		made, sold, counted, oldAnswers["strategy_superseded"])
	return nil
}

const crowdSize = 8

// answers waits for so many answers of a code.
func answers(ctx context.Context, c *shop.Crowd, code string, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("within %s there are not %d answers %s", patience, n, code))
	defer cancel()
	return c.Until(ctx, func() bool { return c.Codes[code] >= n })
}

// takenOver is what comes of a switch in the middle of a section.
type takenOver struct {
	sku        string
	old, fresh sale // what the holders are answered
	refused    refusal
	sold       int64
}

// takeover has a holder under redis, with a very large token, send its first message to PostgreSQL, which is delayed. Then
// zookeeper is put in charge, and its first holder reads. Then the message arrives.
func (r *Run) takeover(ctx context.Context, t *Timeline) (o takenOver, err error) {
	const a, b = "holder under redis", "holder under zookeeper"
	wire, err := r.wire()
	if err != nil {
		return o, err
	}
	nextWire, err := r.wire()
	if err != nil {
		return o, err
	}
	old, err := r.startBehind(ctx, wire, "FENCEPOST_INVENTORY_LOCK=redis")
	if err != nil {
		return o, err
	}
	if o.sku, err = r.item(ctx, old, 1, "", enforced); err != nil {
		return o, err
	}
	// Redis has counted very far, and ZooKeeper has not.
	err = r.redis(r.lab.Server("redis-1")).Set(ctx, counterOf(o.sku), 1_000_000_000_000, 0).Err()
	if err != nil {
		return o, err
	}
	stale := wire.hold(o.sku, presentation, 0)
	began := time.Now()
	oldAnswer := buyAside(ctx, old, o.sku)
	if _, err := await(ctx, "the message of the old holder", stale.sent); err != nil {
		return o, err
	}
	t.at(began, Step, a, "takes the lock in Redis, with a token beyond 1000000000000")
	t.at(time.Now(), Step, a, "sends its message to PostgreSQL, which is delayed")
	r.say("zookeeper takes over")
	fresh, err := r.startBehind(ctx, nextWire, "FENCEPOST_INVENTORY_LOCK=zookeeper", "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return o, err
	}
	t.at(time.Now(), Fault, b, "an instance with the other strategy is started, and takes over")
	reading := nextWire.hold(o.sku, presentation, 1)
	taken := time.Now()
	freshAnswer := buyAside(ctx, fresh, o.sku)
	if _, err := await(ctx, "the read of the new holder", reading.sent); err != nil {
		return o, err
	}
	t.at(time.Now(), Step, b, "takes the lock in ZooKeeper, and reads that 1 unit is left")
	stale.letGo()
	if o.old, err = await(ctx, "the old holder's answer", oldAnswer); err != nil {
		return o, err
	}
	if o.old.made() {
		t.at(o.old.at, Mistake, a, "its message arrives, and it sells the unit with token %s", o.old.token())
	} else {
		if o.refused, err = wire.refusal(ctx); err != nil {
			return o, err
		}
		t.at(o.refused.At, Refuse, a, "its message arrives with token %s, and is refused: the epoch is that of %s", o.refused.presented(), o.refused.current())
	}
	reading.letGo()
	if o.fresh, err = await(ctx, "the new holder's answer", freshAnswer); err != nil {
		return o, err
	}
	oldToken := o.old.token()
	if !o.old.made() {
		oldToken = o.refused.presented()
	}
	t.span(began, o.old.at, a, oldToken)
	t.span(taken, o.fresh.at, b, o.fresh.token())
	kind := Refuse
	if o.fresh.made() {
		kind = Accept
	}
	t.at(o.fresh.at, kind, b, "is answered %s", o.fresh)
	o.sold, err = r.sold(ctx, o.sku)
	return o, err
}

// forgetEpochs has the owner of the run's database rewrite the fence, so that it compares tokens alone.
func (r *Run) forgetEpochs(ctx context.Context) error {
	for _, change := range []struct{ function, from, to string }{
		{"locked_fence", "p_epoch IS NULL OR p_strategy IS NULL OR a.epoch <> p_epoch OR a.strategy <> p_strategy", "false"},
		{"present", "(p_epoch, p_token) > (f.epoch, f.token)", "p_token > f.token"},
		{"present", "(p_epoch, p_token) = (f.epoch, f.token)", "p_token = f.token"},
	} {
		var source string
		err := r.ask(ctx, `SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = $1 AND pronamespace = 'public'::regnamespace`,
			[]any{change.function}, &source)
		if err != nil {
			return err
		}
		if !strings.Contains(source, change.from) {
			return fmt.Errorf("the function %s of the schema is not what this experiment knows: it does not have %q", change.function, change.from)
		}
		if err := r.database.Exec(ctx, strings.ReplaceAll(source, change.from, change.to)); err != nil {
			return err
		}
	}
	return r.database.Exec(ctx, `DROP TRIGGER guard_fence ON fences`) // which has the fence move forward by epochs as well
}
