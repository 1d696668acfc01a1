package experiments

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"fencepost/cmd/lab/internal/shop"
)

var poolExhaustion = Experiment{
	Name:    "pool-exhaustion",
	Claim:   "A slow step inside a row lock keeps a connection for each who waits: the pool runs dry, and requests for other items stand still.",
	Control: "The same slow step under a lease of redis holds no connection, and other items are served at once.",
	Run:     runPoolExhaustion,
}

func runPoolExhaustion(ctx context.Context, r *Run) error {
	const (
		connections = 4
		buyers      = 7
	)
	review := 500 * time.Millisecond
	if r.short {
		review = 300 * time.Millisecond
	}
	instance, err := r.startOne(ctx, fmt.Sprintf("FENCEPOST_DATABASE_CONNS=%d", connections),
		"FENCEPOST_REVIEW_TIME="+review.String(), "FENCEPOST_LOCK_WAIT=12s",
		"FENCEPOST_SWEEP_INTERVAL=1m", "FENCEPOST_AUDIT_INTERVAL=0") // no sessions that have nothing to do with it
	if err != nil {
		return err
	}
	r.Header = []string{"lock of the hot item", "buyers", "connections", "a restock of another item takes"}
	r.BarUnit = "milliseconds for a restock of another item"
	waited := map[string]time.Duration{}
	for _, strategy := range []string{"postgres", "redis"} {
		r.say("a slow step under " + strategy)
		hot, err := r.item(ctx, instance, 100, strategy, enforced)
		if err != nil {
			return err
		}
		other, err := r.item(ctx, instance, 100, "postgres", enforced)
		if err != nil {
			return err
		}
		answers := make([]<-chan sale, buyers)
		for i := range answers {
			answers[i] = buyAside(ctx, instance, hot)
		}
		if strategy == "postgres" {
			err = until(ctx, "every connection is in a transaction", func() (bool, error) {
				n, err := r.inTransactions(ctx)
				return n == connections, err
			})
		} else {
			err = r.locked(ctx, r.redis(r.lab.Server("redis-1")), hot)
		}
		if err != nil {
			return err
		}
		answer := shop.Exchange(ctx, http.MethodPost, instance.URL+"/v1/items/"+other+"/restocks", map[string]any{"quantity": 1}, nil)
		if answer.Status != http.StatusOK {
			return fmt.Errorf("the restock is answered %d (%w)", answer.Status, answer.Err)
		}
		waited[strategy] = answer.Took
		r.row(strategy, buyers, connections, lasted(answer.Took))
		r.bar(strategy, "", float64(answer.Took.Microseconds())/1000)
		for _, a := range answers {
			if _, err := await(ctx, "the buyers of the hot item are served", a); err != nil {
				return err
			}
		}
	}
	const saw = "with the slow step taking %s, a restock of another item took %s"
	r.claims(waited["postgres"] > review, "every connection is in a transaction, and a request for another item waits for one", saw, review, lasted(waited["postgres"]))
	r.controls(waited["redis"] < review, "a request for another item is served at once", saw, review, lasted(waited["redis"]))
	return nil
}

// inTransactions is how many sessions of the service are. Only the service's own role sees what they do.
func (r *Run) inTransactions(ctx context.Context) (n int, err error) {
	conn, err := pgx.Connect(ctx, r.database.Service)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, `
		SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL`).Scan(&n)
	return n, err
}
