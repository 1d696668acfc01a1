package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/migrations"
)

// ownPostgres starts a PostgreSQL for this test alone, with the schema in it.
func ownPostgres(ctx context.Context, t *testing.T, certificate *servers.Certificate) *servers.OwnPostgres {
	t.Helper()
	server, err := lab.StartPostgres(ctx, "p"+uuid.NewString(), certificate)
	require.NoError(t, err)
	killAll(t, server.Server)
	return server
}

// A COMMIT whose answer was lost is asked for, and whoever is asked may be a standby that is behind: the address has moved, or
// the URL allows it. A standby knows neither the number of the transaction nor its rows; only the primary's word counts.
func TestStandbyIsNotBelieved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	primary := ownPostgres(ctx, t, nil)
	ownerURL, serviceURL := primary.Variable("FENCEPOST_OWNER_URL"), primary.Variable("FENCEPOST_DATABASE_URL")
	_, err := migrations.Up(ctx, ownerURL, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	open := func(t *testing.T, url string) *postgres.Store {
		store, err := postgres.Open(ctx, url, postgres.Options{MaxConns: 1, Log: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		t.Cleanup(store.Close)
		return store
	}
	direct := open(t, serviceURL)
	authority, err := direct.ClaimAuthority(ctx, domain.ScopeInventory, "postgres", "postgres", domain.ByConfiguration)
	require.NoError(t, err)
	_, err = direct.CreateItem(ctx, domain.Item{SKU: "lamp", Name: "Lamp"}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
	require.NoError(t, err)
	direct.Close() // or the primary would wait for it to leave
	standby, err := primary.StartStandby(ctx, "s"+uuid.NewString())
	require.NoError(t, err)
	killAll(t, standby)

	// A COMMIT of what has a ledger waits while somebody has this lock.
	owner := postgrestest.Connect(t, ownerURL)
	_, err = owner.Exec(ctx, `
		CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
	require.NoError(t, err)

	const lifetime = 200 * time.Millisecond // of a connection
	var stock int64                         // as it is
	for _, test := range []struct {
		name       string
		attributes string // of the servers that the URL allows
		commit     pgproxy.Verdict
		waits      bool     // the COMMIT does
		asked      []string // where the sessions take place, the last one from then on; prefer-standby begins two on a primary
		want       error
	}{
		{"its address leads to the standby", "any", pgproxy.LoseAnswer, false, []string{standby.Address, standby.Address, primary.Address}, nil},
		{"its address leads to the standby, and it did not come so far", "any", pgproxy.HangUp, false, []string{standby.Address, standby.Address, primary.Address}, domain.ErrUnavailable},
		{"its address leads to the standby for good", "any", pgproxy.LoseAnswer, false, []string{standby.Address}, domain.ErrOutcomeUnknown},
		{"the standby is asked for the rows", "prefer-standby", pgproxy.LoseAnswer, false, []string{primary.Address, primary.Address, standby.Address, primary.Address}, nil},
		{"the standby is asked for the number", "prefer-standby", pgproxy.CutOff, true, []string{standby.Address, primary.Address}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var asked atomic.Int32
			primaryWasAsked := make(chan struct{})
			through := postgrestest.NewProxy(t, serviceURL, func(p *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
				switch {
				case r.Statement == "COMMIT":
					p.Route(test.asked...)
					return test.commit
				case strings.Contains(r.Statement, "pg_xact_status"):
					if asked.Add(1) == 3 {
						close(primaryWasAsked)
					}
					time.Sleep(lifetime) // so that the next question has another connection
				}
				return pgproxy.Pass
			})
			store := open(t, fmt.Sprintf("%s&pool_max_conn_lifetime=%s&target_session_attrs=%s", through.URL, lifetime, test.attributes))
			done := make(chan error, 1)
			if test.waits {
				_, err := owner.Exec(ctx, `SELECT pg_advisory_lock(1)`)
				require.NoError(t, err)
			}
			go func() {
				grant := domain.Grant{Key: "item/lamp", Strategy: "postgres", Epoch: authority.Epoch, ID: domain.GrantID(uuid.New()), RowLock: true}
				_, _, err := store.Transact(ctx, []domain.Grant{grant}, patience, false, domain.Only(domain.Section{Run: restock}))
				done <- err
			}()
			if test.waits {
				select {
				case <-primaryWasAsked:
				case err := <-done:
					require.NoError(t, err, "the transaction has not ended: nobody can know how it will")
				}
				_, err := owner.Exec(ctx, `SELECT pg_advisory_unlock(1)`)
				require.NoError(t, err)
			}
			require.ErrorIs(t, <-done, test.want)
			if test.commit != pgproxy.HangUp {
				stock++
			}
			require.Equal(t, stock, onHand(t, ownerURL), "the truth")
		})
	}
	behind := strings.Replace(ownerURL, primary.Address, standby.Address, 1)
	require.Zero(t, onHand(t, behind), "the negative control: the standby would have told another story")
}

// restock adds one lamp.
func restock(ctx context.Context, tx domain.Tx) error {
	item, err := tx.Item(ctx, "lamp")
	if err != nil {
		return err
	}
	if err := item.Restock(1); err != nil {
		return err
	}
	tx.PutItem(item, domain.Entry{Kind: domain.EntryRestock})
	return nil
}

func onHand(t *testing.T, url string) (units int64) {
	t.Helper()
	require.NoError(t, postgrestest.Connect(t, url).QueryRow(t.Context(), `SELECT on_hand FROM items WHERE resource = 'item/lamp'`).Scan(&units))
	return units
}
