package main

import (
	"context"
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"fencepost/domain/postgres"
	"fencepost/migrations"
)

type configCommand struct{}

// Run prints the configuration, and then what is wrong with it.
func (configCommand) Run(c *Config, con console) error {
	err := c.checkAll()
	c.print(con.out)
	return err
}

type migrateCommand struct{}

func (migrateCommand) Run(ctx context.Context, c *Config, con console) error {
	if err := c.checkOwner(); err != nil {
		return err
	}
	applied, err := migrations.Up(ctx, c.OwnerURL, slog.New(slog.NewTextHandler(con.err, nil)))
	if err != nil {
		return fmt.Errorf("PostgreSQL at %s, as FENCEPOST_OWNER_URL has it: %w", address(c.OwnerURL), err)
	}
	if applied == 0 {
		fmt.Fprintln(con.out, "The schema is up to date.")
	} else {
		fmt.Fprintf(con.out, "Applied %d migrations; the schema is up to date.\n", applied)
	}
	return nil
}

type keysCommand struct {
	Create createKeyCommand `cmd:"" help:"Make a key, and print it for the only time."`
	List   listKeysCommand  `cmd:"" help:"List the keys, without the keys themselves."`
	Revoke revokeKeyCommand `cmd:"" help:"End a key, within a few seconds on all instances."`
}

// withKeys opens the keys for the duration of use.
func withKeys(ctx context.Context, c *Config, use func(*postgres.Keys) error) error {
	if err := c.checkDatabase(); err != nil {
		return err
	}
	store, err := postgres.Open(ctx, c.DatabaseURL, postgres.Options{MaxConns: 1, Instance: "fencepost keys", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer store.Close()
	return use(store.Keys())
}

type createKeyCommand struct {
	Name string `required:"" help:"Whom the key stands for. Keys of the same name are the same caller."`
	Role string `required:"" enum:"client,admin" help:"What the key allows: client or admin."`
}

func (k *createKeyCommand) Run(ctx context.Context, c *Config, con console) error {
	return withKeys(ctx, c, func(keys *postgres.Keys) error {
		id, key, err := keys.Create(ctx, k.Name, k.Role)
		if err != nil {
			return err
		}
		fmt.Fprintln(con.out, key) // alone, so that a script can take it
		fmt.Fprintf(con.err, "Key %s was made. It is not stored and cannot be shown again.\n", id)
		return nil
	})
}

type listKeysCommand struct{}

func (listKeysCommand) Run(ctx context.Context, c *Config, con console) error {
	return withKeys(ctx, c, func(keys *postgres.Keys) error {
		list, err := keys.List(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tROLE\tCREATED\tREVOKED")
		for _, k := range list {
			revoked := "-"
			if !k.RevokedAt.IsZero() {
				revoked = k.RevokedAt.UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Role, k.CreatedAt.UTC().Format(time.RFC3339), revoked)
		}
		return w.Flush()
	})
}

type revokeKeyCommand struct {
	ID string `arg:"" help:"The key's id, as list shows it."`
}

func (k *revokeKeyCommand) Run(ctx context.Context, c *Config, con console) error {
	return withKeys(ctx, c, func(keys *postgres.Keys) error {
		if err := keys.Revoke(ctx, k.ID); err != nil {
			return err
		}
		fmt.Fprintf(con.out, "Key %s is revoked.\n", k.ID)
		return nil
	})
}
