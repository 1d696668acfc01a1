package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/handlers"
)

type auditCommand struct {
	Resource string `arg:"" optional:"" help:"item/SKU or coupon/CODE; without it, everything."`
	JSON     bool   `help:"Print one JSON object a line."`
}

// offError is the verdict that something is off. The audit itself has worked.
type offError struct{ off, audited int }

func (e *offError) Error() string {
	return fmt.Sprintf("%d of %d resources are off", e.off, e.audited)
}

// noVerdictError is an audit that came to no end. It must not be taken for a verdict, in either way.
type noVerdictError struct{ error }

func (e noVerdictError) Unwrap() error { return e.error }

// Run prints a line for each resource as it comes: there may be millions.
func (a *auditCommand) Run(ctx context.Context, c *Config, con console) error {
	if err := c.checkDatabase(); err != nil {
		return err
	}
	store, err := postgres.Open(ctx, c.DatabaseURL, postgres.Options{MaxConns: 1, Instance: "fencepost audit", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return noVerdictError{err}
	}
	defer store.Close()

	print := printRow
	if a.JSON {
		print = printJSON
	} else {
		fmt.Fprintf(con.out, rowFormat, "RESOURCE", "LIMIT", "SOLD", "HELD", "REFUSED", "VERDICT")
	}
	verdict := &offError{}
	each := func(row domain.AuditRow) error {
		verdict.audited++
		if !row.OK() {
			verdict.off++
		}
		return print(con.out, row)
	}
	if a.Resource == "" {
		err = store.AuditEach(ctx, each)
	} else {
		var rows []domain.AuditRow
		if rows, err = store.Audit(ctx, domain.Key(a.Resource)); err == nil {
			err = each(rows[0])
		}
	}
	if err != nil {
		return noVerdictError{err}
	}
	if verdict.off > 0 {
		return verdict
	}
	resources := "resources"
	if verdict.audited == 1 {
		resources = "resource"
	}
	fmt.Fprintf(con.err, "%d %s audited, nothing is off\n", verdict.audited, resources)
	return nil
}

const rowFormat = "%-40v  %10v  %10v  %10v  %8v  %v\n"

func printRow(w io.Writer, r domain.AuditRow) error {
	verdict := "ok"
	if !r.OK() {
		verdict = strings.Join(r.Findings(), "; ")
	}
	_, err := fmt.Fprintf(w, rowFormat, r.Key, r.Limit, r.Sold, r.Held, r.Refused, verdict)
	return err
}

func printJSON(w io.Writer, r domain.AuditRow) error {
	return json.NewEncoder(w).Encode(handlers.AuditJSON(r))
}
