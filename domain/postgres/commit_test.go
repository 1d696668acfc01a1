package postgres_test

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/domain/postgres/pgproxy"
	"fencepost/domain/postgres/postgrestest"
)

// Where a proxy cuts the connection.
const (
	nowhere      int32 = iota
	onlyLook           // it does not: the COMMIT is only seen
	beforeCommit       // COMMIT does not reach the server
	afterCommit        // the server has committed, and its answer does not reach the client
	forGood            // as afterCommit, and the server cannot be reached any more
)

// proxy cuts the connection of a store at a COMMIT.
type proxy struct {
	cut  atomic.Int32 // at the next COMMIT, once
	gone atomic.Bool  // nobody answers any more who is asked what became of a transaction
	seen func()       // called when the COMMIT has arrived that cut was set for; set it before cut
}

// throughProxy opens a store whose connections pass a proxy.
func throughProxy(t *testing.T, w *world) (*proxy, *postgres.Store) {
	t.Helper()
	p := &proxy{}
	through := postgrestest.NewProxy(t, w.db.ServiceURL, func(through *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
		if p.gone.Load() && strings.Contains(r.Statement, "pg_xact_status") {
			return pgproxy.HangUp
		}
		if r.Statement != "COMMIT" {
			return pgproxy.Pass
		}
		switch p.cut.Swap(nowhere) {
		case onlyLook:
			p.seen()
		case beforeCommit:
			return pgproxy.HangUp
		case forGood:
			through.Refuse()
			p.gone.Store(true)
			return pgproxy.LoseAnswer
		case afterCommit:
			return pgproxy.LoseAnswer
		}
		return pgproxy.Pass
	})
	store, err := postgres.Open(t.Context(), through.URL, postgres.Options{MaxConns: 1, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return p, store
}

// A COMMIT whose answer was lost is neither a success nor a failure until the server was asked.
func TestLostAnswerToCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	p, store := throughProxy(t, w)

	reserve := func(cut int32) (domain.Reservation, error) {
		r := reservation(domain.Line{SKU: "a", Quantity: 1})
		p.cut.Store(cut)
		_, err := transact(t.Context(), store, []domain.Grant{w.grant(key)}, wait, hold(r))
		assert.Equal(t, nowhere, p.cut.Load(), "the cut has happened")
		return r, err
	}
	t.Run("committed", func(t *testing.T) {
		r, err := reserve(afterCommit)
		require.NoError(t, err)
		stored, err := w.store.Reservation(t.Context(), r.ID)
		require.NoError(t, err)
		assert.Equal(t, r, stored)
		assert.EqualValues(t, 1, w.audit(t, key).Held, "once")
	})
	t.Run("never sent", func(t *testing.T) {
		r, err := reserve(beforeCommit)
		require.ErrorIs(t, err, domain.ErrUnavailable)
		assert.NotErrorIs(t, err, domain.ErrOutcomeUnknown)
		_, err = w.store.Reservation(t.Context(), r.ID)
		require.ErrorIs(t, err, domain.ErrNotFound)
		assert.EqualValues(t, 1, w.audit(t, key).Held)
	})
	t.Run("the caller goes while it is under way", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p.seen = cancel
		p.cut.Store(onlyLook)
		r := reservation(domain.Line{SKU: "a", Quantity: 1})
		_, err := transact(ctx, store, []domain.Grant{w.grant(key)}, wait, hold(r))
		require.Error(t, ctx.Err())
		require.NoError(t, err, "a COMMIT is awaited, whoever has gone")
		_, err = w.store.Reservation(t.Context(), r.ID)
		require.NoError(t, err)
	})
	t.Run("creating, committed", func(t *testing.T) {
		p.cut.Store(afterCommit)
		_, err := store.CreateItem(t.Context(), domain.Item{SKU: "b", Name: "B"}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
		require.NoError(t, err)
		assert.True(t, w.audit(t, "item/b").OK())
	})
	t.Run("creating, never sent", func(t *testing.T) {
		p.cut.Store(beforeCommit)
		create := func() error {
			_, err := store.CreateItem(t.Context(), domain.Item{SKU: "c", Name: "C"}, domain.LockSpec{Fencing: domain.FencingEnforced}, nil)
			return err
		}
		require.ErrorIs(t, create(), domain.ErrUnavailable)
		require.NoError(t, create())
	})
	assert.True(t, w.audit(t, key).OK())
}

// When the server cannot be asked either, nothing is claimed.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	p, store := throughProxy(t, w)
	p.cut.Store(forGood)
	r := reservation(domain.Line{SKU: "a", Quantity: 1})
	_, err := transact(t.Context(), store, []domain.Grant{w.grant(key)}, wait, hold(r))
	require.ErrorIs(t, err, domain.ErrOutcomeUnknown)
	assert.NotErrorIs(t, err, domain.ErrUnavailable, "that would say that nothing was written")
	_, err = w.store.Reservation(t.Context(), r.ID)
	require.NoError(t, err, "here it was")
}

// A number that was handed out again after a crash, or has not been handed out again yet, says nothing about the transaction
// that once had it: what counts is its own row.
func TestForeignTransactionNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := w.item(t, "a", 10, domain.FencingEnforced)
	conn := postgrestest.Connect(t, w.db.ServiceURL)
	foreign := query[string](t, conn, `SELECT pg_current_xact_id()::text`) // committed by the time the answer is here
	err := w.store.Settle(t.Context(), foreign, key, uuid.New())
	require.ErrorIs(t, err, domain.ErrUnavailable, "somebody else's COMMIT is none of ours")
	require.NotErrorIs(t, err, domain.ErrOutcomeUnknown)

	err = w.store.Settle(t.Context(), "99999999999", key, uuid.New())
	require.ErrorIs(t, err, domain.ErrUnavailable, "a number of the future was lost in a crash")

	entry := query[[16]byte](t, conn, `SELECT entry FROM ledger WHERE resource = $1`, key)
	require.NoError(t, w.store.Settle(t.Context(), foreign, key, uuid.UUID(entry)), "the row is there, so it was committed")
}
