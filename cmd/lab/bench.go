package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"fencepost/cmd/internal/block"
	"fencepost/cmd/lab/internal/bench"
	"fencepost/cmd/lab/internal/servers"
)

type benchCmd struct {
	Contenders []string      `placeholder:"NAME,NAME" help:"What is measured. By default all strategies and their peers."`
	Clients    []int         `default:"1,16,64,256" placeholder:"N,N" help:"Clients at the same time on the hot item with one instance (${default})."`
	Rounds     int           `default:"3" placeholder:"N" help:"How often each measurement is made (${default})."`
	Duration   time.Duration `default:"4s" placeholder:"DURATION" help:"How long each measurement takes, after a warm-up of a quarter of it (${default})."`
	Only       []string      `sep:"none" placeholder:"TEXT" help:"Measure only scenarios that have this in their name, for example '1 client,'. May be given again."`
	Stored     []int         `placeholder:"N,N" help:"Measure as well with so many reservations stored before, for example 1000000,10000000. Ten million take about ten gigabytes and some minutes."`
	Quick      bool          `help:"See that the benchmark works: one round of a second with few clients, of the strategy redis and its closest peer. Its figures say nothing."`
	JSON       string        `name:"json" type:"path" placeholder:"FILE" help:"Write everything that was measured to this file."`
	HTML       string        `name:"html" type:"path" placeholder:"FILE" help:"Write a page with plots to this file. It needs no network."`
	Markdown   string        `name:"markdown" type:"path" placeholder:"FILE" help:"Put the table of targets into this file, between the lines <!-- benchmark --> and <!-- /benchmark -->."`

	contenders []bench.Contender
	scenarios  []bench.Scenario
}

// Help is the end of what --help prints.
func (benchCmd) Help() string {
	return `The peers are the smallest services that users of the usual libraries would write, in cmd/lab/peers. Everything shares
this machine: leave it alone meanwhile.

Exit code 1: something has answered with an error, or the database does not bear the answers out. A target that is missed
changes no exit code.`
}

// Validate is called by kong when all flags are read.
func (c *benchCmd) Validate() error {
	if c.Quick {
		c.Contenders, c.Rounds, c.Duration = []string{"redis", "bsm-redislock"}, 1, time.Second
	}
	for _, n := range c.Clients {
		if n < 1 || n > bench.MostClients {
			return fmt.Errorf("--clients must be between 1 and %d, which is what one instance of the service lets in", bench.MostClients)
		}
	}
	for _, n := range c.Stored {
		if n < 0 || n > 1_000_000_000 || n%1000 != 0 {
			return errors.New("--stored must be thousands, up to a billion")
		}
	}
	switch {
	case c.Rounds < 1 || c.Rounds > 100:
		return errors.New("--rounds must be between 1 and 100")
	case c.Duration < 100*time.Millisecond || c.Duration > time.Hour:
		return errors.New("--duration must be between 100ms and 1h")
	}
	c.scenarios = bench.Scenarios(c.Clients, c.Stored)
	if c.Quick {
		hot := bench.Scenario{Clients: 4, Items: 1, Instances: 1}
		grown := hot
		grown.Growth, grown.Stored = true, 1000
		c.scenarios = []bench.Scenario{hot, grown}
	}
	if c.Only != nil {
		c.scenarios = slices.DeleteFunc(c.scenarios, func(s bench.Scenario) bool {
			return !slices.ContainsFunc(c.Only, func(text string) bool { return strings.Contains(s.String(), text) })
		})
	}
	if len(c.scenarios) == 0 {
		return fmt.Errorf("--only %q fits no scenario; their names are like %q", strings.Join(c.Only, `" or "`), bench.Scenario{Clients: 64, Items: 1, Instances: 2})
	}
	var err error
	c.contenders, err = bench.Find(c.Contenders)
	return err
}

// Run prints the report to the standard output and everything else to the standard error.
func (c *benchCmd) Run(ctx context.Context) error {
	if err := writable(c.JSON, c.HTML); err != nil {
		return err
	}
	options := servers.Options{Getenv: os.Getenv, Require: []string{servers.Postgres, servers.Redis, servers.ZooKeeper}, RequireEmpty: true}
	return withLab(ctx, options, func(ctx context.Context, lab *servers.Lab) error {
		show, done := progressLine(os.Stderr)
		report, err := bench.Run(ctx, lab, bench.Options{
			Contenders: c.contenders, Scenarios: c.scenarios, Rounds: c.Rounds, Duration: c.Duration, Progress: show,
		})
		done()
		if err != nil {
			return unlessStopped(ctx, err)
		}
		if err := errors.Join(c.write(report), report.Print(os.Stdout)); err != nil {
			return err
		}
		if len(report.Failures) > 0 {
			return fmt.Errorf("the benchmark has failed: %s", strings.Join(report.Failures, "; "))
		}
		return nil
	})
}

func (c *benchCmd) write(report *bench.Report) error {
	if err := writeReport(c.JSON, c.HTML, report); err != nil {
		return err
	}
	if c.Markdown != "" {
		return block.Write(c.Markdown, "benchmark", report.Markdown())
	}
	return nil
}
