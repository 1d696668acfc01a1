// Package databases works with the databases of the laboratory's PostgreSQL past the service: it makes copies, so that
// whoever needs one has one of his own, and runs SQL as the owner of the schema.
//
// It knows nothing of the schema.
package databases

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"

	"fencepost/cmd/lab/internal/servers"
)

// The variables that name a database, and the owner of its schema.
const (
	serviceVariable = "FENCEPOST_DATABASE_URL"
	ownerVariable   = "FENCEPOST_OWNER_URL"
)

// Database is one database: the URL as the service's role, and the one as the owner.
type Database struct{ Service, Owner string }

// Of is the database that the laboratory was started with.
func Of(lab *servers.Lab) Database {
	return Database{Service: lab.Variable(serviceVariable), Owner: lab.Variable(ownerVariable)}
}

// Use connects as the owner.
func (d Database) Use(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, d.Owner)
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(context.WithoutCancel(ctx)))
}

// Exec runs one statement as the owner.
func (d Database) Exec(ctx context.Context, sql string, args ...any) error {
	return d.Use(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

// Env is for a program that is to use this database.
func (d Database) Env() []string {
	return []string{serviceVariable + "=" + d.Service, ownerVariable + "=" + d.Owner}
}

// Copied makes a database like this one, to which nobody may be connected.
func (d Database) Copied(ctx context.Context, name string) (Database, error) {
	maintenance, original, err := d.named("postgres")
	if err != nil {
		return Database{}, err
	}
	err = maintenance.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize()+` TEMPLATE `+pgx.Identifier{original}.Sanitize())
	if err != nil {
		return Database{}, fmt.Errorf("create the database %s: %w", name, err)
	}
	copied, _, err := d.named(name)
	return copied, err
}

// named is another database of the same server, and what this one is called.
func (d Database) named(name string) (other Database, was string, err error) {
	service, err := url.Parse(d.Service)
	if err != nil {
		return Database{}, "", errors.New(serviceVariable + " is not a URL") // which may have a password in it
	}
	owner, err := url.Parse(d.Owner)
	if err != nil {
		return Database{}, "", errors.New(ownerVariable + " is not a URL")
	}
	was = strings.TrimPrefix(owner.Path, "/")
	service.Path, owner.Path = "/"+name, "/"+name
	return Database{service.String(), owner.String()}, was, nil
}
