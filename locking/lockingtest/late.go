package lockingtest

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/locking"
)

// presentLate replaces an instance's transactions by the classic mistake: the token is checked together with the write,
// and not before the read.
func presentLate(w *world) func(*locking.Backend, *locking.Database) {
	return func(_ *locking.Backend, database *locking.Database) {
		*database = lateDatabase{Store: (*database).(*postgres.Store), url: w.db.ServiceURL}
	}
}

type lateDatabase struct {
	*postgres.Store
	url string
}

func (d lateDatabase) Transact(ctx context.Context, grants []domain.Grant, _ time.Duration, _ bool, collect domain.Collect) (domain.Receipt, []error, error) {
	sections := collect(false)
	receipt, outcomes := domain.Receipt{Grants: grants}, make([]error, len(sections))
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return receipt, outcomes, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return receipt, outcomes, pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		late := &lateTx{tx: tx}
		if err := sections[0].Run(ctx, late); err != nil {
			return err
		}
		for _, g := range grants {
			if _, err := tx.Exec(ctx, `SELECT present($1, $2, $3, $4, $5)`, g.Key, g.Strategy, g.Epoch, int64(g.Token), g.ID); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `UPDATE items SET on_hand = $2 WHERE resource = $1`, domain.ItemKey(late.item.SKU), late.item.OnHand)
		return err
	})
}

// lateTx can do what the test needs: read one item and put it.
type lateTx struct {
	domain.Tx
	tx   pgx.Tx
	item domain.Item
}

func (t *lateTx) Item(ctx context.Context, sku string) (domain.Item, error) {
	item := domain.Item{SKU: sku}
	err := t.tx.QueryRow(ctx, `SELECT name, on_hand, reserved, sold FROM items WHERE resource = $1`, domain.ItemKey(sku)).
		Scan(&item.Name, &item.OnHand, &item.Reserved, &item.Sold)
	return item, err
}

func (t *lateTx) PutItem(item domain.Item, _ domain.Entry) { t.item = item }
