// Package migrations holds the schema and the fence, embedded, and brings a database up to date with them. Up may be run by
// any number of instances at once: one of them migrates, the others wait for it.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx" for database/sql, which goose works on
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// Up migrates the database at ownerURL to the newest version and returns how many migrations it applied. The URL must be
// the schema owner's and lead straight to PostgreSQL: the lock that keeps instances apart belongs to the session, which a
// transaction pooler does not keep.
func Up(ctx context.Context, ownerURL string, log *slog.Logger) (applied int, err error) {
	db, err := sql.Open("pgx", ownerURL)
	if err != nil {
		return 0, fmt.Errorf("opening the owner's database: %w", err)
	}
	defer db.Close()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
	if err != nil {
		return 0, fmt.Errorf("preparing the migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(locker), goose.WithSlog(log))
	if err != nil {
		return 0, fmt.Errorf("reading the embedded migrations: %w", err)
	}
	results, err := provider.Up(ctx)
	if err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Hint != "" { // the fix, which the driver leaves out of its text
			err = fmt.Errorf("%w: %s", err, pg.Hint)
		}
		return len(results), fmt.Errorf("migrating: %w", err)
	}
	return len(results), nil
}
