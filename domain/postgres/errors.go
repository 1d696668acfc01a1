package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"fencepost/domain"
)

// The SQLSTATEs that mean something here. Of the fence's own the migrations say what.
const (
	stateStaleToken   = "FP001"
	stateNotInCharge  = "FP002"
	stateNoToken      = "FP005"
	stateNoResource   = "FP006"
	stateSerializable = "40001"
	stateDeadlock     = "40P01"
	stateLockTimeout  = "55P03"
	stateCanceled     = "57014" // statement_timeout, or our own request to cancel
	stateIdleTimeout  = "25P03" // idle_in_transaction_session_timeout
	stateUnique       = "23505"
	stateReadOnly     = "25006" // the server was demoted to a standby

	stateInvalidParameter = "22023"
)

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// aborted tells whether the server rolled the transaction back for the sake of others, so that it is worth another try.
// So is one whose answer another one with the same key has given in the meantime: it will find that answer.
func aborted(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	return pg.Code == stateSerializable || pg.Code == stateDeadlock || pg.Code == stateUnique && pg.TableName == "answers"
}

// pauseBeforeRetry waits a random time of up to 10 ms, doubled with each try, so that those who collided do not meet again.
func pauseBeforeRetry(ctx context.Context, try int) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(rand.N(10 * time.Millisecond << try)):
		return nil
	}
}

// domainError turns an error of the driver into one of the domain. A query that was cut short because its context ended
// failed for the reason that the context gives (the lock was lost, the request's time is up), whatever the driver calls it.
func domainError(ctx context.Context, err error) error {
	if state := sqlState(err); err != nil && ctx.Err() != nil && (state == "" || state == stateCanceled) {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return plain(err)
}

// plain is domainError without a context to consult.
func plain(err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || connecting(err) {
		if unreachable(err) {
			return &domain.UnavailableError{Server: "PostgreSQL", Err: err}
		}
		return err
	}
	switch pg.Code {
	case stateStaleToken:
		return refused(pg, domain.ErrStaleToken, "stale_fencing_token")
	case stateNotInCharge:
		return refused(pg, domain.ErrSuperseded, "strategy_superseded")
	case stateNoToken:
		return refused(pg, domain.ErrFencingRequired, "fencing_required")
	case stateNoResource:
		return fmt.Errorf("%w: %w", domain.ErrNotFound, err)
	case stateLockTimeout, stateSerializable, stateDeadlock:
		return fmt.Errorf("%w: %w", domain.ErrLockTimeout, err)
	case stateIdleTimeout:
		return fmt.Errorf("%w: %w", domain.ErrLockLost, err)
	}
	if pg.Code == stateReadOnly || pg.Code == stateCanceled {
		return &domain.UnavailableError{Server: "PostgreSQL", Err: err}
	}
	// Classes: connection trouble, out of connections or disk, shut-down and crash. What stands before a server may send less
	// than a code.
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", "53", "57", "58":
		return &domain.UnavailableError{Server: "PostgreSQL", Err: err}
	}
	return err
}

// connecting tells whether it did not even come to a connection: whatever the server said to that (a wrong password, a
// missing database), it is of no use.
func connecting(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

func unreachable(err error) bool {
	var network net.Error
	return connecting(err) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// refused reads the detail that the fence gives with its no.
func refused(pg *pgconn.PgError, sentinel error, reason string) error {
	var d struct {
		Resource          domain.Key `json:"resource"`
		PresentedStrategy string     `json:"presented_strategy"`
		PresentedEpoch    string     `json:"presented_epoch"`
		PresentedToken    string     `json:"presented_token"`
		CurrentEpoch      string     `json:"current_epoch"`
		CurrentToken      string     `json:"current_token"`
		CurrentGrant      uuid.UUID  `json:"current_grant"`
	}
	if err := json.Unmarshal([]byte(pg.Detail), &d); err != nil {
		return fmt.Errorf("%w (its detail cannot be read: %w): %w", sentinel, err, pg)
	}
	number := func(s string) int64 { // SQL NULL comes as null, which leaves the string empty: 0
		n, _ := strconv.ParseInt(s, 10, 64)
		return n
	}
	return &domain.RefusedError{Err: sentinel, Refusal: domain.Refusal{
		Grant: domain.Grant{
			Key: d.Resource, Strategy: d.PresentedStrategy,
			Epoch: number(d.PresentedEpoch), Token: domain.Token(number(d.PresentedToken)),
		},
		Reason:       reason,
		CurrentEpoch: number(d.CurrentEpoch),
		CurrentToken: domain.Token(number(d.CurrentToken)),
		CurrentGrant: domain.GrantID(d.CurrentGrant),
	}}
}

// newUUID is a UUIDv7: rows that are written together lie together in the index.
func newUUID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
