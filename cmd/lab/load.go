package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"fencepost/cmd/lab/internal/load"
)

type loadCmd struct {
	Instances []string      `placeholder:"URL" help:"Base URLs of the instances to race over. By default --url is asked for them."`
	URL       string        `name:"url" default:"http://127.0.0.1:8080" placeholder:"URL" help:"One instance; it tells where the others are if it asks for no keys (${default})."`
	APIKey    string        `name:"api-key" env:"FENCEPOST_API_KEY" placeholder:"KEY" help:"An admin's key, if the service asks for keys. The environment is the better place: other users see the flags of a process."`
	Strategy  string        `placeholder:"NAME" help:"The lock. By default the one that the service is configured with."`
	Fencing   string        `enum:",enforced,off" default:"" placeholder:"enforced|off" help:"The fence. By default as the service is configured."`
	Coupon    bool          `help:"Race for the uses of a coupon instead of the units of an item."`
	Stock     int           `default:"100" placeholder:"N" help:"How many units, or uses of the coupon, there are (${default})."`
	Buyers    int           `default:"64" placeholder:"N" help:"How many clients try at the same time, spread over the instances (${default})."`
	Requests  int           `placeholder:"N" help:"How many attempts are made in all, each for one unit. By default twice the stock, and at least one for each buyer."`
	Timeout   time.Duration `default:"1m" placeholder:"DURATION" help:"No attempt begins after this (${default})."`
	JSON      string        `name:"json" type:"path" placeholder:"FILE" help:"Write the report to this file as well."`
	Strict    bool          `help:"Exit with 1 on oversell even where the fence is off."`
}

// Help is the end of what --help prints.
func (loadCmd) Help() string {
	return `All buyers start together. An attempt that is refused or gets no answer is counted under its code and not repeated.
The verdict is the database's own count, not the clients'.

Exit code 0: the verdict was taken, and it is good. 1: more was sold than there was, a counter is wrong, or something that a
client was promised is missing. 2: there is no verdict, because a flag is wrong or an instance does not answer. Where the fence
is off, overselling is what is to be shown: it is printed, and the exit code stays 0 unless --strict is given.`
}

// Validate is called by kong when all flags are read.
func (c *loadCmd) Validate() error {
	if c.Requests == 0 {
		c.Requests = max(2*c.Stock, c.Buyers)
	}
	for _, address := range append([]string{c.URL}, c.Instances...) {
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not a base URL: write http://HOST:PORT", address)
		}
	}
	switch {
	case c.Stock < 1 || c.Stock > 1_000_000:
		return errors.New("--stock must be between 1 and 1000000")
	case c.Buyers < 1 || c.Buyers > 5000:
		return errors.New("--buyers must be between 1 and 5000")
	case c.Requests < 1 || c.Requests > 10_000_000:
		return errors.New("--requests must be between 1 and 10000000")
	case c.Timeout < time.Second || c.Timeout > time.Hour:
		return errors.New("--timeout must be between 1s and 1h")
	}
	return nil
}

// Run prints the report to the standard output and everything else to the standard error.
func (c *loadCmd) Run(ctx context.Context) error {
	report, err := c.race(ctx, os.Stderr)
	if err == nil && c.JSON != "" {
		err = writeJSON(c.JSON, report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return exitCode(2)
	}
	if err := c.print(os.Stdout, report); err != nil {
		return err
	}
	if c.failed(report) {
		return exitCode(1)
	}
	return nil
}

func (c *loadCmd) race(ctx context.Context, progress *os.File) (load.Report, error) {
	instances := c.Instances
	if len(instances) == 0 {
		var err error
		if instances, err = load.Discover(ctx, strings.TrimRight(c.URL, "/"), c.APIKey); err != nil {
			return load.Report{}, err
		}
	}
	for i := range instances {
		instances[i] = strings.TrimRight(instances[i], "/")
	}
	if c.Buyers < len(instances) {
		return load.Report{}, fmt.Errorf("%d buyers cannot use %d instances: set --buyers to %d or more", c.Buyers, len(instances), len(instances))
	}
	show, done := progressLine(progress)
	defer done()
	tell := func(p load.Progress) {
		show(fmt.Sprintf("%d of %d answered, %d created", p.Answered, p.Requests, p.Created))
	}
	return load.Run(ctx, load.Options{
		Instances: instances, Key: c.APIKey, Coupon: c.Coupon, Strategy: c.Strategy, Fencing: c.Fencing,
		Limit: c.Stock, Buyers: c.Buyers, Requests: c.Requests, Timeout: c.Timeout, Progress: tell,
	})
}

// progressLine rewrites one line on a terminal. Anywhere else it prints a line now and then.
func progressLine(w *os.File) (show func(text string), done func()) {
	if term.IsTerminal(int(w.Fd())) {
		const clear = "\r\x1b[K"
		return func(text string) { fmt.Fprint(w, clear, text) }, func() { fmt.Fprint(w, clear) }
	}
	last := time.Now()
	return func(text string) {
		if time.Since(last) >= 2*time.Second {
			last = time.Now()
			fmt.Fprintln(w, text)
		}
	}, func() {}
}

// failed tells whether the verdict is bad. A promise that was not kept is bad under every lock.
func (c *loadCmd) failed(r load.Report) bool {
	return r.Missing > 0 || !r.OK && (c.Strict || r.Fencing != "off")
}

func (c *loadCmd) print(out io.Writer, r load.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tlock %s, fencing %s\n", r.Resource, r.Strategy, r.Fencing)
	fmt.Fprintf(w, "%d attempts\t%d buyers, %d instances, %.2f s, %.0f answers/s\n", r.Requests, c.Buyers, len(r.Instances), r.Seconds, r.PerSecond)
	fmt.Fprintf(w, "latency\tp50 %.1f ms, p95 %.1f ms, p99 %.1f ms, max %.1f ms\n\n", r.Latency.P50, r.Latency.P95, r.Latency.P99, r.Latency.Max)
	fmt.Fprint(w, "outcome\tall")
	for _, instance := range r.Instances {
		fmt.Fprintf(w, "\t%s", strings.TrimPrefix(strings.TrimPrefix(instance.URL, "http://"), "https://"))
	}
	fmt.Fprintln(w)
	for _, code := range r.Codes() {
		fmt.Fprintf(w, "%s\t%d", code, r.Outcomes[code])
		for _, instance := range r.Instances {
			fmt.Fprintf(w, "\t%d", instance.Outcomes[code])
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	if r.Unsent > 0 {
		fmt.Fprintf(w, "stopped early: %d attempts were not made\n", r.Unsent)
	}
	if r.Refused > 0 {
		fmt.Fprintf(w, "the fence turned away %d stale writes\n", r.Refused)
	}
	fmt.Fprintln(w, r.Verdict)
	if !r.OK && !c.failed(r) {
		fmt.Fprintln(w, "The fence was off, so this is no failure (--strict makes it one).")
	}
	return w.Flush()
}

func writeJSON(name string, report any) error {
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}
