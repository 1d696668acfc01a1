// Package bench measures every strategy beside its peers: the smallest services that users of the usual lock libraries
// would write (cmd/lab/peers).
//
// It promises that those who are compared run in turn within the same round, on fresh items and in fresh processes; that a
// ratio is taken within a round; and that a contender whose answers the database does not bear out, to the last unit,
// fails the benchmark however fast it was.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/report"
	"fencepost/cmd/lab/internal/servers"
)

// Options of a benchmark.
type Options struct {
	Contenders []Contender
	Scenarios  []Scenario
	Rounds     int
	Duration   time.Duration // of one measurement; a quarter of it more is the warm-up
	Progress   func(text string)
}

// stock of each item, so that none is sold out.
const stock = 1_000_000_000

// run is a benchmark under way.
type run struct {
	Options
	lab            *servers.Lab
	service, peers string // programs
	main           database
	stored         map[int]database // by the number of reservations in them
	measured       int
}

// Run holds all measurements. What has failed is in the report, without figures, and does not keep the others from being
// measured.
func Run(ctx context.Context, lab *servers.Lab, o Options) (*Report, error) {
	r := &run{Options: o, lab: lab, stored: map[int]database{}}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	results := map[cell][]Sample{}
	var failures []string
	failed := map[cell]bool{}
	total := 0
	for _, s := range o.Scenarios {
		for _, c := range o.Contenders {
			if c.fits(s) {
				total += o.Rounds
			}
		}
	}
	began := time.Now()
	for round := range o.Rounds {
		contenders := slices.Clone(o.Contenders)
		if round%2 == 1 { // nobody always comes after the same one
			slices.Reverse(contenders)
		}
		for _, s := range o.Scenarios {
			for _, c := range contenders {
				at := cell{c.Name, s}
				if !c.fits(s) || failed[at] {
					continue
				}
				o.Progress(fmt.Sprintf("%d of %d%s: %s, %s", r.measured+1, total, remaining(began, r.measured, total), c.Name, s))
				sample, err := r.measure(ctx, c, s)
				wrong, isWrong := errors.AsType[wrongError](err)
				switch {
				case ctx.Err() != nil:
					return nil, context.Cause(ctx)
				case isWrong:
					failed[at] = true
					failures = append(failures, fmt.Sprintf("%s, %s, round %d: %s", c.Name, s, round+1, wrong))
					delete(results, at)
				case err != nil:
					return nil, fmt.Errorf("%s, %s: %w", c.Name, s, err)
				default:
					results[at] = append(results[at], sample)
				}
			}
		}
	}
	return r.report(results, failures), nil
}

// wrongError is a failure of what was measured, not of the laboratory.
type wrongError string

func (e wrongError) Error() string { return string(e) }

func remaining(began time.Time, done, total int) string {
	if done == 0 {
		return ""
	}
	left := time.Since(began) / time.Duration(done) * time.Duration(total-done)
	if left > time.Minute {
		return fmt.Sprintf(", %.0f min left", left.Minutes())
	}
	return fmt.Sprintf(", %.0f s left", left.Seconds())
}

// prepare builds the programs and makes the databases.
func (r *run) prepare(ctx context.Context) (err error) {
	r.Progress("building the service and its peers")
	if r.service, err = instances.Build(ctx, r.lab); err != nil {
		return err
	}
	source, err := instances.SourceDir(ctx, r.lab, "fencepost/cmd/lab")
	if err != nil {
		return err
	}
	source = filepath.Join(source, "peers")
	if r.peers, err = instances.BuildProgram(ctx, r.lab, source, "fencepost/cmd/lab/peers"); err != nil {
		return err
	}
	if err := instances.Migrate(ctx, r.lab, r.service); err != nil {
		return err
	}
	schema, err := os.ReadFile(filepath.Join(source, "schema.sql"))
	if err != nil {
		return err
	}
	r.main = database{databases.Of(r.lab)}
	if err := r.main.Exec(ctx, string(schema)); err != nil {
		return fmt.Errorf("make the peers' tables: %w", err)
	}
	for _, s := range r.Scenarios {
		if _, made := r.stored[s.Stored]; s.Growth && !made {
			if err := r.grow(ctx, s.Stored); err != nil {
				return fmt.Errorf("a database with %d reservations: %w", s.Stored, err)
			}
		}
	}
	return nil
}

// grow makes a database that has n reservations. Each number has one of its own, so that they can be measured in turn.
func (r *run) grow(ctx context.Context, n int) error {
	copied, err := r.main.Copied(ctx, fmt.Sprintf("bench_%d", n))
	if err != nil {
		return err
	}
	d := database{copied}
	r.stored[n] = d
	if n == 0 {
		return nil
	}
	if err := r.create(ctx, d, storedSKUs()); err != nil {
		return err
	}
	if err := d.addPeerItems(ctx, storedSKUs()); err != nil {
		return err
	}
	err = d.load(ctx, n, func(loaded int) {
		r.Progress(fmt.Sprintf("%s of %s reservations stored", report.Number(float64(loaded)), report.Number(float64(n))))
	})
	if err != nil {
		return err
	}
	return errors.Join(d.check(ctx, true, storedSKUs(), n, 0), d.check(ctx, false, storedSKUs(), n, 0))
}

// create puts items on sale in a database that no instance uses yet.
func (r *run) create(ctx context.Context, d database, skus []string) error {
	strategy, err := Find([]string{"postgres"})
	if err != nil {
		return err
	}
	running, addresses, err := r.start(ctx, strategy[0], d, 1)
	if err != nil {
		return err
	}
	err = createItems(ctx, addresses[0], skus)
	return errors.Join(err, instances.Stop(context.WithoutCancel(ctx), running))
}

// measure takes one sample, with processes and items that were not used before.
func (r *run) measure(ctx context.Context, c Contender, s Scenario) (Sample, error) {
	d := r.main
	if s.Growth {
		d = r.stored[s.Stored]
	}
	r.measured++
	skus := make([]string, s.Items)
	for i := range skus {
		skus[i] = fmt.Sprintf("bench-%d-%d", r.measured, i)
	}
	running, addresses, err := r.start(ctx, c, d, s.Instances)
	if err != nil {
		return Sample{}, err
	}
	sample, err := r.drive(ctx, c, d, addresses, skus, s.Clients)
	// What is still under way is finished before it is counted.
	err = errors.Join(err, instances.Stop(context.WithoutCancel(ctx), running))
	if err != nil {
		return Sample{}, err
	}
	return sample, d.check(ctx, c.Ours(), skus, sample.created, sample.Unanswered)
}

func (r *run) drive(ctx context.Context, c Contender, d database, addresses, skus []string, clients int) (Sample, error) {
	var err error
	if c.Ours() {
		err = createItems(ctx, addresses[0], skus)
	} else {
		err = d.addPeerItems(ctx, skus)
	}
	if err != nil {
		return Sample{}, err
	}
	l := &loop{addresses: addresses, skus: skus, clients: clients, warmUp: r.Duration / 4, duration: r.Duration, drain: drain}
	sample, err := l.run(ctx)
	if err != nil {
		return Sample{}, wrongError(err.Error())
	}
	return sample, nil
}

// start runs instances of the contender.
func (r *run) start(ctx context.Context, c Contender, d database, n int) ([]*instances.Instance, []string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		var err error
		if addresses[i], err = r.lab.FreeAddress(); err != nil {
			return nil, nil, err
		}
	}
	config := instances.Config{Binary: r.peers, Args: []string{c.Name}, Addresses: addresses, Env: d.Env()}
	if c.Ours() {
		config.Binary, config.Args = r.service, nil
		config.Env = append(config.Env,
			"FENCEPOST_INVENTORY_LOCK="+c.Name, "FENCEPOST_DRAIN_DELAY=0s",
			"FENCEPOST_LOCK_WAIT=14s",  // the most there is; the peers wait without an end
			"FENCEPOST_HOLD_TTL=24h",   // or the holds of one round would expire in the next, beside what is measured; the peers' never do
			"FENCEPOST_LOG_LEVEL=warn") // the peers do not log requests either
		if !c.fenced() {
			config.Env = append(config.Env, "FENCEPOST_FENCING=off")
		}
	}
	running, err := instances.Start(ctx, r.lab, config)
	return running, addresses, err
}

// createItems puts items on sale through the service.
func createItems(ctx context.Context, address string, skus []string) error {
	const clients = 8
	group, ctx := errgroup.WithContext(ctx)
	for i := range clients {
		group.Go(func() error {
			c, err := dial(ctx, address)
			if err != nil {
				return err
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
			for n := i; n < len(skus); n += clients {
				body := fmt.Sprintf(`{"sku":%q,"name":"Benchmark","stock":%d}`, skus[n], stock)
				if err := c.create(post(address, "/v1/items", body)); err != nil {
					return fmt.Errorf("create an item: %w", err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (r *run) report(results map[cell][]Sample, failures []string) *Report {
	report := &Report{
		Taken: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Rounds: r.Rounds, Seconds: r.Duration.Seconds(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH + ", " + runtime.Version(), Failures: failures,
	}
	for _, s := range r.lab.Servers {
		report.Servers = append(report.Servers, s.Name+" "+s.Version)
	}
	for _, s := range r.Scenarios {
		for _, c := range r.Contenders {
			if samples := results[cell{c.Name, s}]; len(samples) > 0 {
				report.Results = append(report.Results, newResult(c, s, samples))
			}
		}
	}
	report.Verdicts = report.judge(targets(r.Scenarios))
	return report
}
