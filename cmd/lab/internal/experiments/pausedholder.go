package experiments

import (
	"context"
	"fmt"
	"time"
)

var pausedHolder = Experiment{
	Name:    "paused-holder",
	Claim:   "A holder that is paused for longer than its lease is refused when its message arrives at last: its token is stale. So it is with redis, redlock and zookeeper.",
	Control: "With the fence off, the write that was on its way when the holder was paused lands after the successor's: the only unit is sold twice.",
	Run:     runPausedHolder,
}

// pause is one item of the experiment: one strategy, with the fence or without it.
type pause struct {
	strategy, fencing, sku string
	message                *held
	holder                 <-chan sale
	first, next            sale
	asked, sent, arrived   time.Time
	sold                   int64
}

// runPausedHolder stops one instance while it holds the locks of six items, with a message to PostgreSQL about each on its way:
// where there is a fence, the presentation of its second transaction, and where there is none, its writes and the COMMIT.
// The service looks at its clock before it sends anything, so at any other moment it would notice by itself that it was late.
// What has been sent nobody can call back.
func runPausedHolder(ctx context.Context, r *Run) error {
	const term = 1500 * time.Millisecond
	wire, err := r.wire()
	if err != nil {
		return err
	}
	next, err := r.startOne(ctx, "FENCEPOST_LEASE_TTL="+term.String(), "FENCEPOST_LOCK_WAIT=12s")
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, "FENCEPOST_LEASE_TTL="+term.String(), "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return err
	}
	var all []*pause
	for _, strategy := range []string{"redis", "redlock", "zookeeper"} {
		for _, fencing := range []string{enforced, off} {
			p := &pause{strategy: strategy, fencing: fencing}
			if p.sku, err = r.item(ctx, next, 1, strategy, fencing); err != nil {
				return err
			}
			p.message = wire.hold(p.sku, "UPDATE items", 0)
			if fencing == enforced {
				p.message = wire.hold(p.sku, "SELECT present", 1) // the first is before it reads
			}
			all = append(all, p)
		}
	}

	r.say("a holder has six locks, and is paused")
	for _, p := range all {
		p.asked = time.Now()
		p.holder = buyAside(ctx, holder, p.sku)
	}
	for _, p := range all {
		if _, err := await(ctx, "the holder's message about "+p.strategy, p.message.sent); err != nil {
			return err
		}
		p.sent = time.Now()
	}
	if err := holder.Pause(); err != nil {
		return err
	}
	paused := time.Now()
	r.say("the leases end, and another instance sells the units")
	for _, p := range all {
		if p.next, err = mustBuy(ctx, next, p.sku); err != nil {
			return err
		}
	}
	for _, p := range all {
		if err := p.arrive(ctx, r, wire); err != nil {
			return err
		}
	}
	r.say("the holder goes on")
	if err := holder.Resume(); err != nil {
		return err
	}
	resumed := time.Now()
	r.Header = []string{"lock", "fencing", "paused holder", "its successor", "refused", "fence at", "sold of 1"}
	for _, p := range all {
		if p.first, err = await(ctx, "the holder's answer", p.holder); err != nil {
			return err
		}
		if err := p.judge(ctx, r); err != nil {
			return err
		}
	}
	for _, p := range all[:2] {
		p.draw(r, paused, resumed)
	}
	return nil
}

// arrive lets the delayed message go on, and returns when PostgreSQL has acted upon it. The holder still sleeps.
func (p *pause) arrive(ctx context.Context, r *Run, wire *wire) (err error) {
	p.message.letGo()
	if p.fencing == enforced {
		p.arrived, err = wire.refusal(ctx, staleToken)
		return err
	}
	err = until(ctx, "the holder's write", func() (bool, error) {
		p.sold, err = r.sold(ctx, p.sku)
		return p.sold == 2, err
	})
	p.arrived = time.Now()
	return err
}

func (p *pause) judge(ctx context.Context, r *Run) (err error) {
	if p.sold, err = r.sold(ctx, p.sku); err != nil {
		return err
	}
	if p.fencing == off {
		r.row(p.strategy, off, p.first, p.next, "–", "–", p.sold)
		r.controls(p.first.made() && p.next.made() && p.sold == 2, "both are told that they have the unit",
			"%s: the holder is answered %s, its successor %s, and %d of 1 are sold", p.strategy, p.first, p.next, p.sold)
		return nil
	}
	refusals, err := r.refusals(ctx, p.sku)
	if err != nil {
		return err
	}
	last := refusal{Presented: "–", Current: "–"}
	if len(refusals) > 0 {
		last = refusals[len(refusals)-1]
	}
	r.row(p.strategy, enforced, p.first, p.next, last.Presented, last.Current, p.sold)
	r.claims(p.first.Code == "stale_fencing_token" && last.Reason == "stale_fencing_token" && last.Current == p.next.token() && p.sold == 1,
		"the fence refuses the holder's token because the successor's is newer, and the unit is sold once",
		"%s: the holder is answered %s; presented %s, fence at %s, which is the token of the successor; %d of 1 sold",
		p.strategy, p.first, last.Presented, last.Current, p.sold)
	return nil
}

func (p *pause) draw(r *Run, paused, resumed time.Time) {
	who := func(role string) string { return fmt.Sprintf("%s (fence %s)", role, p.fencing) }
	a, b := who("holder"), who("successor")
	r.span(p.asked, resumed, a, "believes it has the lock")
	r.at(p.asked, Step, a, "takes the lock, reads that 1 unit is left")
	r.at(p.sent, Step, a, "sends its message to PostgreSQL, which is delayed")
	r.at(paused, Fault, a, "is paused (SIGSTOP)")
	r.span(p.next.at.Add(-p.next.held()), p.next.at, b, "")
	if p.fencing == off {
		r.at(p.next.at, Accept, b, "has got the lock when the lease ended, and sells the unit")
		r.at(p.arrived, Mistake, a, "its write arrives and lands: the unit is sold twice")
	} else {
		r.at(p.next.at, Accept, b, "has got the lock when the lease ended, and sells the unit with token %s", p.next.token())
		r.at(p.arrived, Refuse, a, "its message arrives and is refused: its token is older than %s", p.next.token())
	}
	r.at(resumed, Step, a, "goes on, and is answered %s", p.first)
}
