package experiments

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/shop"
)

var deadlock = Experiment{
	Name:    "deadlock",
	Claim:   "Orders of the same two items, one naming them in the opposite order, do not deadlock: whoever takes several locks takes them in the order of their bytes.",
	Control: "Two transactions that lock the same two rows in the order in which their orders name them wait for each other, until PostgreSQL ends one (40P01).",
	Run:     runDeadlock,
}

func runDeadlock(ctx context.Context, r *Run) error {
	running, err := r.start(ctx, 2)
	if err != nil {
		return err
	}
	a, err := r.item(ctx, running[0], 1000, "", enforced)
	if err != nil {
		return err
	}
	b, err := r.item(ctx, running[0], 1000, "", enforced)
	if err != nil {
		return err
	}
	const buyers, each = 8, 25
	r.say("buyers order two items, in both orders")
	outcomes := map[int]int{} // by status
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range buyers {
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		group.Go(func() {
			for range each {
				status := shop.Exchange(ctx, http.MethodPost, running[i/2%2].URL+"/v1/orders", map[string]any{
					"lines": []map[string]any{{"sku": first, "quantity": 1}, {"sku": second, "quantity": 1}},
				}, nil).Status
				mu.Lock()
				outcomes[status]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	// PostgreSQL counts what its sessions have seen when they end; and an order that was a victim would have been tried again.
	http.DefaultClient.CloseIdleConnections() // a server waits five seconds for one that was never used
	if err := instances.Stop(ctx, running); err != nil {
		return err
	}
	sorted, err := r.deadlocks(ctx)
	if err != nil {
		return err
	}
	r.Header = []string{"locks are taken", "orders", "answered 201", "deadlocks"}
	r.row("in the order of their bytes", buyers*each, outcomes[http.StatusCreated], sorted)
	r.claims(outcomes[http.StatusCreated] == buyers*each && sorted == 0, "every order is made, and PostgreSQL has seen no deadlock",
		"%d of %d orders are made; deadlocks: %d", outcomes[http.StatusCreated], buyers*each, sorted)

	r.say("the control: two transactions lock in opposite orders")
	victim, err := r.lockUnsorted(ctx, "item/"+a, "item/"+b)
	if err != nil {
		return err
	}
	unsorted, err := r.deadlocks(ctx)
	if err != nil {
		return err
	}
	r.row("as the order names them", 2, "–", unsorted-sorted)
	r.controls(victim == "40P01" && unsorted-sorted == 1, "PostgreSQL ends one of the two with 40P01", "one of the two got %s; deadlocks: %d", victim, unsorted-sorted)
	return nil
}

// deadlocks is how many PostgreSQL has seen in this database.
func (r *Run) deadlocks(ctx context.Context) (n int, err error) {
	err = r.ask(ctx, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`, nil, &n)
	return n, err
}

// lockUnsorted has two transactions lock the fences of two items with SELECT … FOR UPDATE, each in an order of its own, and
// returns the SQLSTATE of the one that has failed.
func (r *Run) lockUnsorted(ctx context.Context, a, b string) (victim string, err error) {
	t := r.timeline("two transactions that do not sort their locks")
	lock := func(tx pgx.Tx, resource string) error {
		_, err := tx.Exec(ctx, `SELECT FROM fences WHERE resource = $1 FOR UPDATE`, resource)
		return err
	}
	firsts := sync.WaitGroup{} // both have their first lock
	firsts.Add(2)
	transact := func(who, first, second, firstName, secondName string) error {
		return r.database.Use(ctx, func(conn *pgx.Conn) error {
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				err := lock(tx, first)
				t.at(time.Now(), Step, who, "locks item %s", firstName)
				firsts.Done()
				if err != nil {
					return err
				}
				firsts.Wait()
				t.at(time.Now(), Step, who, "waits for item %s", secondName)
				if err = lock(tx, second); err == nil {
					t.at(time.Now(), Accept, who, "gets item %s, because the other was ended", secondName)
				} else {
					t.at(time.Now(), Mistake, who, "is ended: 40P01, deadlock detected")
				}
				return err
			})
		})
	}
	ended := make(chan error, 2)
	go func() { ended <- transact("order of A and B", a, b, "A", "B") }()
	go func() { ended <- transact("order of B and A", b, a, "B", "A") }()
	for range 2 {
		err := <-ended
		failed, isSQL := errors.AsType[*pgconn.PgError](err)
		if err != nil && !isSQL {
			return "", err
		}
		if isSQL {
			victim = failed.Code
		}
	}
	return victim, nil
}
