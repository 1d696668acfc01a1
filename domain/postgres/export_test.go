package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"fencepost/domain"
)

// Settle asks what became of the transaction xid, whose ledger entry would be entry, after its COMMIT got no answer.
func (s *Store) Settle(ctx context.Context, xid string, key domain.Key, entry uuid.UUID) error {
	return s.settle(ctx, &tx{xid: xid, evidence: inLedger(key, entry)}, errors.New("no answer"))
}

// AuditIn audits everything as the transaction sees it.
func AuditIn(ctx context.Context, tx pgx.Tx) ([]domain.AuditRow, error) {
	rows, _ := tx.Query(ctx, auditSQL(allKeys))
	return pgx.CollectRows(rows, scanAudit)
}

// Plain is what an error of the driver means.
func Plain(err error) error { return plain(err) }

// Within has windows of another length.
func (r *Requests) Within(window time.Duration) *Requests {
	r.window = window
	return r
}

// EndLeave lets the time pass in which this instance may use what it has leave for, but does not tell PostgreSQL.
func (h *Holds) EndLeave(caller string) { h.callers.of(caller).until = time.Now() }
