package experiments

import (
	"context"
	"time"

	"fencepost/cmd/lab/internal/instances"
)

// duel is what many experiments come down to: one unit, and two instances of which the second gets the lock while the first
// still believes to have it. The first is in the middle of its section: it has read that there is a unit, and its message to
// PostgreSQL about that is on its way.
type duel struct {
	strategy, fencing, sku string

	message     *held
	answer      <-chan sale
	first, next sale // what the holder was answered, and its successor
	sold        int64
	refused     refusal // the newest, if there is one

	asked, sent, arrived time.Time
}

// The message of the holder that is delayed.
const (
	// The transaction after its slow step begins: it presents its grant a second time.
	presentation = "SELECT present"
	// It writes and commits. The service looks at its own clock before it sends that, and never again.
	write = "UPDATE items"
)

// duel puts the unit on sale.
func (r *Run) duel(ctx context.Context, w *wire, at *instances.Instance, strategy, fencing, message string) (d *duel, err error) {
	d = &duel{strategy: strategy, fencing: fencing}
	if d.sku, err = r.item(ctx, at, 1, strategy, fencing); err != nil {
		return nil, err
	}
	skip := 0
	if message == presentation {
		skip = 1 // the first is before it reads
	}
	d.message = w.hold(d.sku, message, skip)
	return d, nil
}

// begin has the holder take the lock and read, and returns when its message is on its way.
func (d *duel) begin(ctx context.Context, holder *instances.Instance) error {
	d.asked = time.Now()
	d.answer = buyAside(ctx, holder, d.sku)
	_, err := await(ctx, "the message of the holder under "+d.strategy, d.message.sent)
	d.sent = time.Now()
	return err
}

// arrive lets the holder's message arrive, and returns when PostgreSQL has acted upon it.
func (d *duel) arrive(ctx context.Context, r *Run, w *wire) (err error) {
	d.message.letGo()
	if d.fencing == enforced {
		d.refused, err = w.refusal(ctx)
		d.arrived = d.refused.At
		return err
	}
	err = until(ctx, "the holder's write", func() (bool, error) {
		d.sold, err = r.sold(ctx, d.sku)
		return d.sold == 2, err
	})
	d.arrived = time.Now()
	return err
}

// end waits for what the holder is answered, and notes it as a row.
func (d *duel) end(ctx context.Context, r *Run) (err error) {
	if d.first, err = await(ctx, "the holder's answer", d.answer); err != nil {
		return err
	}
	if d.sold, err = r.sold(ctx, d.sku); err != nil {
		return err
	}
	r.Header = []string{"lock", "fencing", "holder", "successor", "refused token", "fence at", "sold of 1"}
	r.row(d.strategy, d.fencing, d.first, d.next, d.refused.presented(), d.refused.current(), d.sold)
	return nil
}

// verdict notes whether the fence has refused the holder because of its successor, and without a fence whether both were told
// that they have the unit.
func (d *duel) verdict(r *Run) {
	if d.fencing == off {
		r.controls(d.first.made() && d.next.made() && d.sold == 2, "both are told that they have the only unit",
			"%s, fencing off: the holder is answered %s, its successor %s; sold %d of 1", d.strategy, d.first, d.next, d.sold)
		return
	}
	r.claims(!d.first.made() && d.sold == 1 && d.refused.byFence() && d.refused.current() == d.next.token(),
		"the fence refuses the holder's write, because it has seen its successor's token, and the unit is sold once",
		"%s: the holder is answered %s, its successor %s; PostgreSQL refuses token %s with the fence at %s; sold %d of 1",
		d.strategy, d.first, d.next, d.refused.presented(), d.refused.current(), d.sold)
}

// draw makes a timeline of what both duels have in common. fault is what has happened to the holder or to its lock.
func (d *duel) draw(r *Run, fault string, faultAt time.Time) *Timeline {
	const a, b = "holder", "successor"
	t := r.timeline("%s, fencing %s", d.strategy, d.fencing)
	token := d.first.token()
	if d.fencing == enforced {
		token = d.refused.presented()
	}
	t.span(d.asked, d.first.at, a, token)
	t.span(d.next.at.Add(-d.next.held()), d.next.at, b, d.next.token())
	t.at(d.asked, Step, a, "takes the lock, and reads that 1 unit is left")
	t.at(d.sent, Step, a, "sends its message to PostgreSQL, which is delayed")
	t.at(faultAt, Fault, a, "%s", fault)
	t.at(d.next.at, Accept, b, "has got the lock, and has sold the unit with token %s", d.next.token())
	if d.fencing == off {
		t.at(d.arrived, Mistake, a, "its write arrives and lands: the unit is sold twice")
	} else {
		t.at(d.arrived, Refuse, a, "its message arrives with token %s, and is refused: the fence is at %s", d.refused.presented(), d.refused.current())
	}
	t.at(d.first.at, Step, a, "is answered %s", d.first)
	return t
}
