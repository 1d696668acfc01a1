package experiments

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/report"
	"fencepost/cmd/lab/internal/servers"
)

var whichOne = Experiment{
	Name:    "which-one",
	Claim:   "Every real lock is exact over several servers, comes free again when its holder has crashed, and lets nobody write when its servers are lost (CP). They differ in speed, in how long a crash is felt, and in what they need.",
	Control: "What needs no lock server always answers (AP), and sells more than there is.",
	Run:     runWhichOne,
}

// term is that of the leases, and the time-out of ZooKeeper's sessions.
const term = 2 * time.Second

// choice is all that is measured of one strategy.
type choice struct {
	strategy, fencing string

	perSecond, p99 float64
	oversold       int64 // of a hundred units, by two instances
	recovery       time.Duration
	one, most      string // what comes of the loss of one of its servers, and of most of them
	refuses        bool   // without its servers
}

var whichOneHeader = []string{
	"strategy", "hot item, answers/s", "p99", "sold of 100 by two instances",
	"next one in after a crash", "a server is lost", "most are lost", "CP or AP",
}

func runWhichOne(ctx context.Context, r *Run) error {
	var choices []*choice
	of := map[string]*choice{}
	for _, strategy := range []string{"none", "local", "postgres", "redis", "redlock", "zookeeper"} {
		c := &choice{strategy: strategy, fencing: enforced, one: "–", most: "–"}
		if strategy == "none" || strategy == "local" {
			c.fencing = off
		}
		choices, of[strategy] = append(choices, c), c
	}
	r.say("starting an ensemble of three ZooKeeper")
	ensemble, err := r.lab.StartEnsemble(ctx)
	if err != nil {
		return err
	}
	for _, m := range ensemble.Members {
		r.atEnd(func(context.Context) error { return m.Kill() })
	}
	env := []string{"FENCEPOST_ZOOKEEPER_SERVERS=" + ensemble.Addresses(), "FENCEPOST_LEASE_TTL=" + term.String()}
	instance, err := r.startOne(ctx, append(env, "FENCEPOST_LOG_LEVEL=warn")...)
	if err != nil {
		return err
	}
	// A lock for each request, so that there is much to go wrong.
	pair, err := r.start(ctx, 2, append(env, "FENCEPOST_MAX_BATCH=1")...)
	if err != nil {
		return err
	}
	if err := r.measure(ctx, choices, instance); err != nil {
		return err
	}
	for _, c := range choices {
		r.say("two instances under " + c.strategy)
		few, err := r.race(ctx, pair, c.strategy, c.fencing, 100, 400)
		if err != nil {
			return err
		}
		c.oversold = few.Oversold
	}
	crashed, err := r.startOne(ctx, append(env, "FENCEPOST_REVIEW_TIME=10s")...)
	if err != nil {
		return err
	}
	if err := r.crash(ctx, crashed, instance, choices[2:]); err != nil {
		return err
	}
	if err := r.loseServers(ctx, instance, ensemble, of); err != nil {
		return err
	}

	r.Header = whichOneHeader
	r.BarUnit = "answers a second on a hot item, 64 buyers, 1 instance"
	for _, c := range choices {
		recovery := "–"
		if c.recovery > 0 {
			recovery = lasted(c.recovery)
		}
		behaviour := "AP"
		if c.refuses {
			behaviour = "CP"
		}
		saw := fmt.Sprintf("%s: %d of 100 sold", c.strategy, 100+c.oversold)
		if c.fencing == off {
			r.controls(c.oversold > 0, "two instances sell more than there is", "%s", saw)
		} else {
			r.claims(c.oversold == 0, "two instances sell exactly what there is", "%s", saw)
		}
		r.row(c.strategy, report.Number(c.perSecond), report.Number(c.p99)+" ms", 100+c.oversold, recovery, c.one, c.most, behaviour)
		r.bar(c.strategy, "", c.perSecond)
	}
	return nil
}

// measure takes turns, so that what disturbs the machine for a while disturbs all alike, and keeps the medians. The first turn
// is for warming up.
func (r *Run) measure(ctx context.Context, choices []*choice, at *instances.Instance) error {
	turns, window := 3, 1500*time.Millisecond
	if r.short {
		turns, window = 1, 200*time.Millisecond
	}
	rates, tails := map[*choice][]float64{}, map[*choice][]float64{}
	for turn := range 1 + turns {
		for _, c := range choices {
			r.say(fmt.Sprintf("a hot item under %s, turn %d of %d", c.strategy, turn, turns))
			hot, err := load.Run(ctx, load.Options{
				Instances: []string{at.URL}, Strategy: c.strategy, Fencing: c.fencing, Limit: 1_000_000, Buyers: 64, Timeout: window,
			})
			if err != nil {
				return err
			}
			if turn > 0 {
				rates[c], tails[c] = append(rates[c], hot.PerSecond), append(tails[c], hot.Latency.P99)
			}
		}
	}
	for _, c := range choices {
		slices.Sort(rates[c])
		slices.Sort(tails[c])
		c.perSecond, c.p99 = math.Round(rates[c][turns/2]), tails[c][turns/2]
	}
	return nil
}

// crash kills an instance in the middle of one section for each strategy, and measures how long the next one waits.
func (r *Run) crash(ctx context.Context, holder, next *instances.Instance, choices []*choice) error {
	r.say("a holder crashes")
	skus := make([]string, len(choices))
	resources := make([]string, len(choices))
	for i, c := range choices {
		var err error
		if skus[i], err = r.item(ctx, next, 10, c.strategy, c.fencing); err != nil {
			return err
		}
		resources[i] = "item/" + skus[i]
		buyAside(ctx, holder, skus[i])
	}
	// Each has presented: under a lease that is committed, under a row lock a transaction is under way.
	err := until(ctx, "the holder has its locks", func() (held bool, err error) {
		err = r.ask(ctx, `
			SELECT (SELECT count(*) FROM fences WHERE resource = ANY ($1) AND token > 0) = $2 - 1
			   AND EXISTS (SELECT FROM pg_locks WHERE relation = 'fences'::regclass AND mode = 'RowExclusiveLock')`,
			[]any{resources, len(resources)}, &held)
		return held, err
	})
	if err != nil {
		return err
	}
	if err := holder.Kill(); err != nil {
		return err
	}
	killed := time.Now()
	answers := make([]<-chan sale, len(choices))
	for i := range choices {
		answers[i] = buyAside(ctx, next, skus[i])
	}
	for i, c := range choices {
		s, err := await(ctx, "the next one under "+c.strategy, answers[i])
		if err != nil {
			return err
		}
		c.recovery = s.at.Sub(killed)
		r.claims(s.made() && c.recovery < term+time.Second+grace, "the lock of a holder that has crashed comes free",
			"%s, with a term of %s: the next one is answered %s after %s", c.strategy, term, s, lasted(c.recovery))
	}
	return nil
}

// loseServers kills the servers of one strategy after the other, and sees what is answered.
func (r *Run) loseServers(ctx context.Context, at *instances.Instance, ensemble *servers.Ensemble, of map[string]*choice) error {
	skus := map[string]string{}
	for strategy, c := range of {
		var err error
		if skus[strategy], err = r.item(ctx, at, 100, strategy, c.fencing); err != nil {
			return err
		}
	}
	made := map[string]int64{}
	// refuses asks once, and has to be refused. goesOn asks until it is served.
	refuses := func(strategy, lost string) string {
		s := buy(ctx, at, skus[strategy])
		if s.made() {
			made[strategy]++
		}
		of[strategy].refuses = s.Status == http.StatusServiceUnavailable
		r.claims(of[strategy].refuses, "without its servers it refuses", "%s: without %s the answer is %s after %s", strategy, lost, s, lasted(s.Took))
		return fmt.Sprintf("refuses (%s)", lasted(s.Took))
	}
	goesOn := func(part Part, strategy, lost string) (string, error) {
		began := time.Now()
		var s sale
		err := until(ctx, strategy+" goes on", func() (bool, error) {
			s = buy(ctx, at, skus[strategy])
			return s.made(), nil
		})
		if err != nil {
			return "", err
		}
		made[strategy]++
		took := lasted(time.Since(began))
		r.find(part, true, "it goes on", "%s: without %s the answer is %s after %s", strategy, lost, s, took)
		return fmt.Sprintf("goes on (%s)", took), nil
	}

	r.say("Redis is lost")
	err := r.kill("redis-1")
	if err == nil {
		of["redis"].one = refuses("redis", "its Redis")
		of["redlock"].one, err = goesOn(Claim, "redlock", "one of five Redis")
	}
	if err == nil {
		err = r.kill("redis-2", "redis-3")
	}
	if err != nil {
		return err
	}
	of["redlock"].most = refuses("redlock", "three of five Redis")

	r.say("ZooKeeper is lost")
	leader, others, err := ensemble.Leader(ctx)
	if err == nil {
		err = leader.Kill()
	}
	if err == nil {
		of["zookeeper"].one, err = goesOn(Claim, "zookeeper", "the leader of three")
	}
	if err == nil {
		err = others[0].Kill()
	}
	if err != nil {
		return err
	}
	of["zookeeper"].most = refuses("zookeeper", "two of three")
	for _, strategy := range []string{"none", "local"} {
		if of[strategy].one, err = goesOn(Control, strategy, "any lock server"); err != nil {
			return err
		}
	}

	r.say("PostgreSQL is lost")
	if err := r.stop(ctx, "postgres"); err != nil {
		return err
	}
	of["postgres"].one = refuses("postgres", "PostgreSQL")
	if err := r.restart(ctx); err != nil {
		return err
	}
	for strategy, sku := range skus {
		sold, err := r.sold(ctx, sku)
		if err != nil {
			return err
		}
		if of[strategy].refuses {
			r.claims(sold == made[strategy], "nothing was written that was refused", "%s: %d sold, %d acknowledged", strategy, sold, made[strategy])
		}
	}
	return nil
}
