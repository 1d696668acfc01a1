package experiments

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

var lateWrite = Experiment{
	Name:    "late-write",
	Claim:   "A stale holder that wakes between its successor's read and write is refused too, because the successor has presented its token before it read.",
	Control: "When the token is checked at the write only, the stale write still carries the newest token seen: it lands, the successor writes from what it had read, and an update is lost.",
	Run:     runLateWrite,
}

func runLateWrite(ctx context.Context, r *Run) error {
	const term = "FENCEPOST_LEASE_TTL=1500ms"
	wire, err := r.wire()
	if err != nil {
		return err
	}
	nextWire, err := r.wire()
	if err != nil {
		return err
	}
	next, err := r.startBehind(ctx, nextWire, term, "FENCEPOST_LOCK_WAIT=12s", "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return err
	}
	holder, err := r.startBehind(ctx, wire, term, "FENCEPOST_REVIEW_TIME=10ms")
	if err != nil {
		return err
	}
	var duels []*duel
	for _, strategy := range []string{"redis", "redlock", "zookeeper"} {
		d, err := r.duel(ctx, wire, next, strategy, enforced, presentation)
		if err != nil {
			return err
		}
		if err := d.begin(ctx, holder); err != nil {
			return err
		}
		duels = append(duels, d)
	}
	if err := holder.Pause(); err != nil {
		return err
	}
	paused := time.Now()
	r.say("the leases end, and the successor reads")
	reads := map[*duel]time.Time{}
	for _, d := range duels {
		reading := nextWire.hold(d.sku, presentation, 1) // it has read, and is going to write
		selling := buyAside(ctx, next, d.sku)
		if _, err := await(ctx, "the successor's read under "+d.strategy, reading.sent); err != nil {
			return err
		}
		reads[d] = time.Now()
		r.say("the stale write arrives")
		if err := d.arrive(ctx, r, wire); err != nil {
			return err
		}
		reading.letGo()
		if d.next, err = await(ctx, "the successor's answer", selling); err != nil {
			return err
		}
	}
	if err := holder.Resume(); err != nil {
		return err
	}
	for _, d := range duels {
		if err := d.end(ctx, r); err != nil {
			return err
		}
		d.verdict(r)
		if d.strategy == "redis" {
			d.draw(r, "is paused (SIGSTOP)", paused).at(reads[d], Step, "successor", "has got the lock, has presented, and reads that 1 unit is left")
		}
	}
	return r.checkAtTheWrite(ctx)
}

// checkAtTheWrite is the same in small, by clients that do what is usually told of fencing tokens: the token goes with the
// write, and a write with a smaller one than was seen before is refused.
func (r *Run) checkAtTheWrite(ctx context.Context) error {
	r.say("the control: the token goes with the write")
	if err := r.database.Exec(ctx, `CREATE TABLE shelf (units int, newest bigint)`); err != nil {
		return err
	}
	if err := r.database.Exec(ctx, `INSERT INTO shelf VALUES (10, 0)`); err != nil {
		return err
	}
	redis := r.redis(r.lab.Server("redis-1"))
	name := "experiment:" + uuid.NewString()
	t := r.timeline("the token is checked at the write only")
	// take is the usual lock: SET NX PX, and a counter for the token.
	take := func(who string, term time.Duration) (token int64, err error) {
		err = until(ctx, who+" has the lock", func() (bool, error) {
			return redis.SetNX(ctx, name, who, term).Result()
		})
		if err != nil {
			return 0, err
		}
		token, err = redis.Incr(ctx, name+":token").Result()
		t.at(time.Now(), Step, who, "takes the lock, with token %d", token)
		return token, err
	}
	read := func(who string) (units int, err error) {
		err = r.ask(ctx, `SELECT units FROM shelf`, nil, &units)
		t.at(time.Now(), Step, who, "reads that %d units are left", units)
		return units, err
	}
	// sell writes what was read less one, unless a newer token was seen.
	sell := func(who string, token int64, units int) (written bool, err error) {
		err = r.database.Use(ctx, func(conn *pgx.Conn) error {
			tag, err := conn.Exec(ctx, `UPDATE shelf SET units = $1, newest = $2 WHERE newest <= $2`, units-1, token)
			written = tag.RowsAffected() == 1
			return err
		})
		return written, err
	}
	began := time.Now()
	first, err := take("holder", 100*time.Millisecond)
	if err != nil {
		return err
	}
	firstRead, err := read("holder")
	if err != nil {
		return err
	}
	second, err := take("successor", time.Minute) // when the first one's term is over
	if err != nil {
		return err
	}
	taken := time.Now()
	secondRead, err := read("successor")
	if err != nil {
		return err
	}
	late, err := sell("holder", first, firstRead)
	if err != nil {
		return err
	}
	t.at(time.Now(), Mistake, "holder", "its late write with token %d is accepted: no newer one was seen in a write", first)
	fresh, err := sell("successor", second, secondRead)
	if err != nil {
		return err
	}
	t.at(time.Now(), Mistake, "successor", "writes from what it had read: the holder's sale is lost")
	t.span(began, time.Now(), "holder", fmt.Sprint(first))
	t.span(taken, time.Now(), "successor", fmt.Sprint(second))
	var left int
	if err := r.ask(ctx, `SELECT units FROM shelf`, nil, &left); err != nil {
		return err
	}
	said := map[bool]string{true: "accepted", false: "refused"}
	r.row("SET NX PX", "at the write", fmt.Sprintf("%s with token %d", said[late], first), fmt.Sprintf("%s with token %d", said[fresh], second), "–", second, "2, of which 1 is lost")
	r.controls(first < second && late && fresh && left == 9, "two sales are accepted, and one unit is taken from stock",
		"tokens %d and %d are both accepted; 2 of 10 units sold, %d left in stock", first, second, left)
	return nil
}
