package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"fencepost/cmd/internal/block"
	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/locking"
	"fencepost/locking/strategies"
	"fencepost/migrations"
)

type configCommand struct {
	Markdown string `type:"path" placeholder:"FILE" help:"Instead, put a table of all variables into this file, between the lines <!-- configuration --> and <!-- /configuration -->."`
}

// configBlock is the block of the README that lists the variables.
const configBlock = "configuration"

// Run prints the configuration, and then what is wrong with it.
func (cmd configCommand) Run(c *Config, con console, parsed *kong.Context) error {
	if cmd.Markdown != "" {
		return block.Write(cmd.Markdown, configBlock, variables(parsed.Model.Flags))
	}
	err := c.checkAll()
	c.print(con.out)
	return err
}

// variables lists those of the flags that are environment variables as well, in the words of --help.
func variables(flags []*kong.Flag) string {
	var table strings.Builder
	table.WriteString("| variable | flag | default | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range flags {
		if len(f.Envs) == 0 {
			continue
		}
		flag := "--" + f.Name + "=" + strings.ReplaceAll(f.FormatPlaceHolder(), "|", `\|`) // or the cell would end there
		value := "–"
		if f.HasDefault {
			value = "`" + f.Default + "`"
		}
		help := strings.Replace(f.Help, " ("+f.Default+")", "", 1) // which has a column of its own
		help = variableName.ReplaceAllString(help, "`$0`")
		fmt.Fprintf(&table, "| `%s` | `%s` | %s | %s |\n", f.Envs[0], flag, value, help)
	}
	return table.String()
}

var variableName = regexp.MustCompile(`FENCEPOST_[A-Z_]*[A-Z](=\w+)?`)

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

type switchCommand struct {
	Target   string `arg:"" placeholder:"TARGET" help:"inventory, coupons, item/SKU or coupon/CODE."`
	Strategy string `arg:"" optional:"" help:"The strategy to put in charge."`
	Shared   bool   `help:"Let the item or the coupon follow the strategy of its kind again."`
	DryRun   bool   `help:"Check everything, and change nothing."`
}

// Validate checks what can be checked without asking anybody; kong calls it.
func (s *switchCommand) Validate() error {
	key := domain.Key(s.Target)
	single := key.Name() != "" && (key.Kind() == domain.KindItem || key.Kind() == domain.KindCoupon)
	scope := domain.Scope(s.Target)
	_, known := strategies.Find(s.Strategy)
	switch {
	case !single && scope != domain.ScopeInventory && scope != domain.ScopeCoupons:
		return fmt.Errorf("%q cannot be switched: name inventory, coupons, item/SKU or coupon/CODE", s.Target)
	case s.Shared && !single:
		return fmt.Errorf("--shared is for one item or coupon, and %s is shared", s.Target)
	case s.Shared != (s.Strategy == ""):
		return fmt.Errorf("name one strategy of %s, or --shared for one item or coupon", strings.Join(strategies.Names(), ", "))
	case !s.Shared && !known:
		return fmt.Errorf("there is no strategy %q; the strategies are %s", s.Strategy, strings.Join(strategies.Names(), ", "))
	}
	return nil
}

// Run prints who was in charge and who is.
func (s *switchCommand) Run(ctx context.Context, c *Config, con console) (err error) {
	// The configuration that has to follow is checked with the rest.
	var variable string
	switch domain.Scope(s.Target) {
	case domain.ScopeInventory:
		variable, c.InventoryLock = "FENCEPOST_INVENTORY_LOCK", s.Strategy
	case domain.ScopeCoupons:
		variable, c.CouponLock = "FENCEPOST_COUPON_LOCK", s.Strategy
	}
	if err := c.checkAll(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	log := c.logger(con.err)
	store, err := postgres.Open(ctx, c.DatabaseURL, postgres.Options{MaxConns: 1, Instance: "fencepost switch", Log: log})
	if err != nil {
		return err
	}
	defer store.Close()
	backends, err := c.openStrategies(nil, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backends.Close()) }()
	before, after, err := locking.NewGuard(store, backends, locking.Options{Log: log}).
		Switch(ctx, domain.Scope(s.Target), s.Strategy, s.DryRun)
	if err != nil {
		return err
	}

	w := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tSCOPE\tSTRATEGY\tEPOCH\tSINCE")
	for _, row := range []struct {
		name string
		domain.Authority
	}{{"before", before}, {"after", after}} {
		epoch, since := "-", "-"
		if row.Epoch > 0 {
			epoch, since = strconv.FormatInt(row.Epoch, 10), row.Since.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", row.name, cmp.Or(row.Scope, "-"), cmp.Or(row.Strategy, "-"), epoch, since)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case s.DryRun:
		fmt.Fprintln(con.err, "Nothing was changed. Everything that the switch needs is there.")
	case variable != "":
		fmt.Fprintf(con.err, "Set %s=%s as well: the order stands until an instance starts with it.\n", variable, s.Strategy)
	}
	return nil
}
