package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/load"
)

type loadCmd struct {
	Instances []string `placeholder:"URL,URL" help:"Base URLs of the instances to race over. By default --url is asked for them."`
	URL       string   `name:"url" default:"http://127.0.0.1:8080" placeholder:"URL" help:"One instance; it tells where the others are if it asks for no keys (${default})."`
	APIKey    string   `name:"api-key" env:"FENCEPOST_API_KEY" placeholder:"KEY" help:"An admin's key, if the service asks for keys. The environment is the better place: other users see the flags of a process."`

	Strategy string   `placeholder:"NAME" help:"The lock. By default the one that the service is configured with."`
	Fencing  string   `enum:",enforced,off" default:"" placeholder:"enforced|off" help:"The fence. By default as the service is configured."`
	Compare  []string `placeholder:"NAME,NAME" help:"Hold the same race under each of these locks, with the fence enforced. Those that issue no tokens, none and local, run with the fence off."`

	Coupon bool `help:"Race for the uses of a coupon."`
	Items  int  `default:"1" placeholder:"N" help:"Over how many items the attempts are spread (${default}: a hot one)."`
	Lines  int  `placeholder:"N" help:"Make orders of so many items each, and of a use of the coupon with --coupon."`
	Stock  int  `default:"100" placeholder:"N" help:"How many units of each item, and uses of the coupon, there are (${default})."`

	Buyers   int           `placeholder:"N" help:"How many clients there are at the same time, spread over the instances: 64, or 256 in an open loop."`
	Rate     float64       `placeholder:"N" help:"An open loop: so many attempts in a second, whether or not those before are answered. By default a buyer tries again when it has its answer."`
	Ramp     time.Duration `placeholder:"DURATION" help:"How long the rate rises to --rate, or the buyers come one after the other."`
	Requests int           `placeholder:"N" help:"How many attempts are made in all. By default twice the stock, and at least one for each buyer; with --duration, as many as it allows."`
	Duration time.Duration `placeholder:"DURATION" help:"No attempt begins after this: 1m, unless set."`
	Patience time.Duration `default:"30s" placeholder:"DURATION" help:"How long a buyer waits for an answer (${default})."`
	Retries  int           `placeholder:"N" help:"How often an attempt is sent again, with the same Idempotency-Key and to the next instance, if it had no answer or one that says so."`

	JSON   string `name:"json" type:"path" placeholder:"FILE" help:"Write the report to this file as well."`
	HTML   string `name:"html" type:"path" placeholder:"FILE" help:"Write a page with plots to this file. It needs no network."`
	Strict bool   `help:"Exit with 1 on oversell even where the fence is off."`
}

// Help is the end of what --help prints.
func (loadCmd) Help() string {
	return `All buyers start together, unless there is a ramp. An attempt that is refused or gets no answer is counted under its code,
and repeated only with --retries. A latency runs from the moment at which the attempt was due: in an open loop also if all
buyers were busy then. The verdict is the database's own count, not the clients'.

Exit code 0: the verdict was taken, and it is good. 1: more was sold than there was, a counter is wrong, something that a
client was promised is missing, or something was given out that no client can know of. 2: there is no verdict, because a flag is wrong or an instance does not answer. Where the fence
is off, overselling is what is to be shown: it is printed, and the exit code stays 0 unless --strict is given.`
}

// Validate is called by kong when all flags are read.
func (c *loadCmd) Validate() error {
	for _, address := range append([]string{c.URL}, c.Instances...) {
		if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not a base URL: write http://HOST:PORT", address)
		}
	}
	for i, name := range c.Compare {
		if name == "" || slices.Contains(c.Compare[:i], name) {
			return errors.New("--compare must name each strategy once: --compare none,local,postgres")
		}
	}
	most := cmp.Or(c.Duration, time.Minute)
	switch {
	case len(c.Compare) > 0 && c.Strategy != "":
		return errors.New("--strategy and --compare exclude each other: leave one out")
	case c.Stock < 1 || c.Stock > 1_000_000:
		return errors.New("--stock must be between 1 and 1000000")
	case c.Items < 1 || c.Items > 1000:
		return errors.New("--items must be between 1 and 1000")
	case c.Lines < 0 || c.Lines > 20:
		return errors.New("--lines must be between 1 and 20")
	case c.Lines > c.Items:
		return fmt.Errorf("--lines is %d, and every line of an order is for another item: set --items to %d or more", c.Lines, c.Lines)
	case c.Coupon && c.Items > 1 && c.Lines == 0:
		return errors.New("--coupon has no items: leave --items out, or set --lines for orders that use the coupon")
	case c.Buyers < 0 || c.Buyers > 5000:
		return errors.New("--buyers must be between 1 and 5000")
	case c.Rate < 0 || c.Rate > 100_000 || c.Rate != c.Rate:
		return errors.New("--rate must be between 0 and 100000")
	case c.Requests < 0 || c.Requests > 10_000_000:
		return errors.New("--requests must be between 1 and 10000000")
	case c.Retries < 0 || c.Retries > 10:
		return errors.New("--retries must be between 0 and 10")
	case c.Duration != 0 && (c.Duration < time.Second || c.Duration > time.Hour):
		return errors.New("--duration must be between 1s and 1h")
	case c.Patience < 100*time.Millisecond || c.Patience > time.Hour:
		return errors.New("--patience must be between 100ms and 1h")
	case c.Ramp < 0 || c.Ramp > most:
		return fmt.Errorf("--ramp must be between 0s and %s, which is how long the race may take (--duration)", most)
	}
	return nil
}

// options fills in what was left out.
func (c *loadCmd) options(instances []string) (load.Options, error) {
	o := load.Options{
		Instances: instances, Key: c.APIKey, Strategy: c.Strategy, Fencing: c.Fencing,
		Coupon: c.Coupon, Items: c.Items, Lines: c.Lines, Limit: c.Stock,
		Buyers: c.Buyers, Rate: c.Rate, Ramp: c.Ramp, Requests: c.Requests, Retries: c.Retries, Timeout: c.Duration, Patience: c.Patience,
	}
	if o.Buyers == 0 {
		o.Buyers = 64
		if o.Rate > 0 {
			o.Buyers = 256
		}
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
		if o.Requests == 0 {
			o.Requests = max(2*o.Limit, o.Buyers)
		}
	}
	if o.Buyers < len(instances) {
		return o, fmt.Errorf("%d buyers cannot use %d instances: set --buyers to %d or more", o.Buyers, len(instances), len(instances))
	}
	return o, nil
}

// Run prints the report to the standard output and everything else to the standard error.
func (c *loadCmd) Run(ctx context.Context) error {
	err := writable(c.JSON, c.HTML)
	var runs []load.Report
	if err == nil {
		runs, err = c.race(ctx, os.Stderr)
	}
	if len(runs) > 0 {
		summary := load.NewSummary(runs)
		err = errors.Join(err, writeReport(c.JSON, c.HTML, summary), c.print(os.Stdout, summary))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return exitCode(2)
	}
	code := 0
	for _, r := range runs {
		if !r.Audited {
			code = 2
		} else if c.failed(r) && code == 0 {
			code = 1
		}
	}
	if code > 0 {
		return exitCode(code)
	}
	return nil
}

func (c *loadCmd) race(ctx context.Context, progress *os.File) ([]load.Report, error) {
	instances := c.Instances
	if len(instances) == 0 {
		var err error
		if instances, err = load.Discover(ctx, strings.TrimRight(c.URL, "/"), c.APIKey); err != nil {
			return nil, err
		}
	}
	for i := range instances {
		instances[i] = strings.TrimRight(instances[i], "/")
	}
	o, err := c.options(instances)
	if err != nil {
		return nil, err
	}
	show, done := progressLine(progress)
	defer done()
	prefix := ""
	o.Progress = func(p load.Progress) {
		show(fmt.Sprintf("%s%.1f s: %s", prefix, p.Elapsed.Seconds(), p))
	}
	if len(c.Compare) == 0 {
		r, err := load.Run(ctx, o)
		if err != nil {
			return nil, err
		}
		return []load.Report{r}, nil
	}
	runs, err := load.Compare(ctx, o, c.Compare, func(strategy string) { prefix = strategy + ", " }, func(r load.Report) {
		done()
		fmt.Fprintf(progress, "%s: %s\n", r.Strategy, r.Verdict)
	})
	if err == nil && len(runs) < len(c.Compare) {
		err = fmt.Errorf("stopped before %s", strings.Join(c.Compare[len(runs):], ", "))
	}
	return runs, err
}

// failed tells whether the verdict is bad. A promise that was not kept, and a sale that nobody asked for, are bad under
// every lock.
func (c *loadCmd) failed(r load.Report) bool {
	return r.Missing > 0 || r.Surplus > 0 || !r.OK && (c.Strict || r.Fencing != "off")
}

func (c *loadCmd) print(out io.Writer, s load.Summary) error {
	if err := s.Print(out); err != nil {
		return err
	}
	forgiven := func(r load.Report) bool { return r.Audited && !r.OK && !c.failed(r) }
	if slices.ContainsFunc(s.Runs, forgiven) {
		fmt.Fprintln(out, "Where the fence was off, overselling is no failure (--strict makes it one).")
	}
	local := func(r load.Report) bool { return r.Strategy == "local" && len(r.Instances) == 1 }
	if slices.ContainsFunc(s.Runs, local) {
		fmt.Fprintln(out, "A mutex is enough for one instance: local oversells with two or more.")
	}
	return nil
}
