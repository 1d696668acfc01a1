package postgres

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"fencepost/domain"
)

// Settle asks what became of the transaction xid, whose ledger entry would be entry, after its COMMIT got no answer.
func (s *Store) Settle(ctx context.Context, xid string, key domain.Key, entry uuid.UUID) error {
	return s.settle(ctx, &tx{xid: xid, evidence: &ledgerRow{key: key, entry: entry}}, errors.New("no answer"))
}
