package experiments

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/servers"
)

type run func(ctx context.Context, r *Run) error

// Options of what Perform does.
type Options struct {
	Experiments []Experiment
	Short       bool              // measure for a shorter time; what is shown is the same
	Progress    func(text string) // of what is going on
	Done        func(Result)      // called after each experiment
}

// Perform runs experiments one after the other in the laboratory, whose servers are all there. An error means that the
// laboratory has failed; what has become of an experiment is in its result.
func Perform(ctx context.Context, lab *servers.Lab, o Options) ([]Result, error) {
	o.Progress("building the service")
	binary, err := instances.Build(ctx, lab)
	if err != nil {
		return nil, err
	}
	if err := instances.Migrate(ctx, lab, binary); err != nil {
		return nil, err
	}
	var results []Result
	for i, e := range o.Experiments {
		r := &Run{
			Result: Result{Name: e.Name, Claim: e.Claim, Control: e.Control},
			lab:    lab, binary: binary, short: o.Short, began: time.Now(),
			say: func(text string) {
				o.Progress(fmt.Sprintf("%d of %d: %s: %s", i+1, len(o.Experiments), e.Name, text))
			},
		}
		r.judge(r.perform(ctx, e.Run), time.Since(r.began))
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		results = append(results, r.Result)
		o.Done(r.Result)
	}
	return results, nil
}

// Run is an experiment under way: the laboratory, a database of its own, and what was found so far.
type Run struct {
	Result

	lab      *servers.Lab
	binary   string
	database databases.Database
	short    bool
	began    time.Time
	say      func(text string)
	endings  []func(context.Context) error
	down     []string // servers that were killed
}

// patience bounds every wait. It is never waited for when all is well.
const patience = 30 * time.Second

// grace is what a busy machine may add to a time that is measured.
const grace = 2 * time.Second

// perform gives the run a database of its own, so that no experiment finds what another has left, and a control may change
// the schema.
func (r *Run) perform(ctx context.Context, do run) (err error) {
	r.say("begins")
	name := "experiment_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if r.database, err = databases.Of(r.lab).Copied(ctx, name); err != nil {
		return err
	}
	defer func() {
		http.DefaultClient.CloseIdleConnections() // net/http waits five seconds for one that was never used
		for _, end := range slices.Backward(r.endings) {
			err = errors.Join(err, end(context.WithoutCancel(ctx)))
		}
	}()
	return do(ctx, r)
}

// atEnd has f done when the run is over, before what was asked for earlier.
func (r *Run) atEnd(f func(context.Context) error) { r.endings = append(r.endings, f) }

// start runs n instances of the service on the run's database, until the run is over.
func (r *Run) start(ctx context.Context, n int, env ...string) ([]*instances.Instance, error) {
	addresses := make([]string, n)
	for i := range addresses {
		var err error
		if addresses[i], err = r.lab.FreeAddress(); err != nil {
			return nil, err
		}
	}
	running, err := instances.Start(ctx, r.lab, instances.Config{
		Binary: r.binary, Addresses: addresses,
		Env: append(append(r.database.Env(), "FENCEPOST_DRAIN_DELAY=0s"), env...),
	})
	if err != nil {
		return nil, err
	}
	r.atEnd(func(ctx context.Context) error { return instances.Stop(ctx, running) })
	return running, nil
}

func (r *Run) startOne(ctx context.Context, env ...string) (*instances.Instance, error) {
	running, err := r.start(ctx, 1, env...)
	if err != nil {
		return nil, err
	}
	return running[0], nil
}

func urls(running []*instances.Instance) []string {
	list := make([]string, len(running))
	for i, instance := range running {
		list[i] = instance.URL
	}
	return list
}

// redis is a client of one of the laboratory's servers.
func (r *Run) redis(s *servers.Server) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: s.Address, MaxRetries: -1})
	r.atEnd(func(context.Context) error { return client.Close() })
	return client
}

// kill kills servers of the laboratory. They are started again when the run is over, unless it does so itself.
func (r *Run) kill(names ...string) error {
	for _, name := range names {
		if err := r.lab.Server(name).Kill(); err != nil {
			return err
		}
		r.isDown(name)
	}
	return nil
}

// stop ends a server in order, so that it has nothing to recover when it is started again.
func (r *Run) stop(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := r.lab.Server(name).Stop(ctx)
	r.isDown(name)
	return err
}

func (r *Run) isDown(name string) {
	r.down = append(r.down, name)
	r.atEnd(r.restart)
}

// restart starts the servers that were killed, side by side: some are not ready without others.
func (r *Run) restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var group errgroup.Group
	for _, name := range r.down {
		group.Go(func() error { return r.lab.Server(name).Start(ctx) })
	}
	r.down = nil
	return group.Wait()
}
