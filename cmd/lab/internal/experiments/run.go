package experiments

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/load"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/cmd/lab/internal/shop"
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
		for i := len(r.endings) - 1; i >= 0; i-- {
			err = errors.Join(err, r.endings[i](context.WithoutCancel(ctx)))
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

// enforced and off are the fencing of an item.
const (
	enforced = "enforced"
	off      = "off"
)

// item puts units on sale, under a lock of the item's own unless strategy is empty.
func (r *Run) item(ctx context.Context, at *instances.Instance, stock int, strategy, fencing string) (sku string, err error) {
	sku = uuid.NewString()
	lock := map[string]string{"fencing": fencing}
	if strategy != "" {
		lock["strategy"] = strategy
	}
	var p problem
	answer := shop.Exchange(ctx, http.MethodPost, at.URL+"/v1/items",
		map[string]any{"sku": sku, "name": r.Name, "stock": stock, "lock": lock}, &p)
	if answer.Status != http.StatusCreated {
		return "", fmt.Errorf("creating an item under %s: %w", strategy, sale{Answer: answer, problem: p}.failure())
	}
	return sku, nil
}

// problem is what an answer says that is no success.
type problem struct{ Code, Detail string }

// sale is the answer to somebody who wanted to buy.
type sale struct {
	shop.Answer
	problem
	at time.Time // when it came
}

func (s sale) made() bool { return s.Status == http.StatusCreated }

// token is epoch and token of the grant under which the service has acted.
func (s sale) token() string { return s.Header.Get("Fencepost-Token") }

// epoch is that of the token.
func (s sale) epoch() string {
	epoch, _, _ := strings.Cut(s.token(), ".")
	return epoch
}

// held is how long the service was in the section, by its own word.
func (s sale) held() time.Duration {
	_, database, _ := strings.Cut(s.Header.Get("Server-Timing"), "db;dur=")
	milliseconds, _ := strconv.ParseFloat(database, 64) // without it, 0
	return time.Duration(milliseconds * float64(time.Millisecond))
}

// String is for findings: "201 with token 1.2", "409 out_of_stock".
func (s sale) String() string {
	switch {
	case s.Status == 0:
		return "no answer"
	case s.made() && s.token() != "":
		return "201 with token " + s.token()
	case s.made():
		return "201"
	}
	return fmt.Sprintf("%d %s", s.Status, s.Code)
}

func (s sale) failure() error {
	if s.Err != nil {
		return s.Err
	}
	return fmt.Errorf("the service answers %s: %s", s, s.Detail)
}

// buy reserves one unit.
func buy(ctx context.Context, at *instances.Instance, sku string) (s sale) {
	s.Answer = shop.Exchange(ctx, http.MethodPost, at.URL+"/v1/items/"+sku+"/reservations", map[string]any{"quantity": 1}, &s.problem)
	s.at = time.Now()
	return s
}

// mustBuy is buy where nothing else than a success is expected.
func mustBuy(ctx context.Context, at *instances.Instance, sku string) (sale, error) {
	s := buy(ctx, at, sku)
	if !s.made() {
		return s, fmt.Errorf("buying: %w", s.failure())
	}
	return s, nil
}

// buyAside is buy beside what goes on.
func buyAside(ctx context.Context, at *instances.Instance, sku string) <-chan sale {
	answer := make(chan sale, 1)
	go func() { answer <- buy(ctx, at, sku) }()
	return answer
}

// await receives what a channel brings.
func await[T any](ctx context.Context, what string, from <-chan T) (T, error) {
	select {
	case v := <-from:
		return v, nil
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	case <-time.After(patience):
		return *new(T), fmt.Errorf("within %s not seen: %s", patience, what)
	}
}

// until waits for something to be so.
func until(ctx context.Context, what string, so func() (bool, error)) error {
	deadline := time.After(patience)
	for {
		if seen, err := so(); seen || err != nil {
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-deadline:
			return fmt.Errorf("within %s not seen: %s", patience, what)
		}
	}
}

// race has buyers race for the units of an item, under a lock of its own unless strategy is empty.
func (r *Run) race(ctx context.Context, on []*instances.Instance, strategy, fencing string, stock, requests int) (load.Report, error) {
	return load.Run(ctx, load.Options{
		Instances: urls(on), Strategy: strategy, Fencing: fencing,
		Limit: stock, Buyers: 64, Requests: requests, Timeout: patience,
	})
}

// ask runs a query for one row on the run's database.
func (r *Run) ask(ctx context.Context, sql string, args []any, into ...any) error {
	return r.database.Use(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(into...) })
}

// sold is how many units of the item the database has given out.
func (r *Run) sold(ctx context.Context, sku string) (n int64, err error) {
	err = r.ask(ctx, `
		SELECT COALESCE(sum(quantity), 0)::bigint FROM reservation_lines
		WHERE resource = 'item/' || $1 AND state IN ('held', 'confirmed')`, []any{sku}, &n)
	return n, err
}

// refusals are those of an item that the service has recorded, the oldest first.
func (r *Run) refusals(ctx context.Context, sku string) (all []recorded, err error) {
	err = r.database.Use(ctx, func(conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `
			SELECT presented_epoch || '.' || presented_token, current_epoch || '.' || current_token, refused_at
			FROM refusals WHERE resource = 'item/' || $1 ORDER BY refused_at`, sku)
		all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[recorded])
		return err
	})
	return all, err
}

// recorded is a refusal with epoch and token of what was presented, and of the fence.
type recorded struct {
	Presented, Current string
	At                 time.Time
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

// claims and controls note what was to be seen, and what was seen.
func (r *Run) claims(ok bool, want, saw string, args ...any) { r.find(Claim, ok, want, saw, args...) }

func (r *Run) controls(ok bool, want, saw string, args ...any) {
	r.find(Control, ok, want, saw, args...)
}

func (r *Run) find(of Part, ok bool, want, saw string, args ...any) {
	r.Findings = append(r.Findings, Finding{Of: of, Want: want, Saw: fmt.Sprintf(saw, args...), OK: ok})
}

func (r *Run) row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = fmt.Sprint(cell)
	}
	r.Rows = append(r.Rows, row)
}

// timeline begins a picture of what happens when.
func (r *Run) timeline(title string, args ...any) *Timeline {
	t := &Timeline{Title: fmt.Sprintf(title, args...), began: r.began}
	r.Timelines = append(r.Timelines, t)
	return t
}

func (t *Timeline) at(when time.Time, kind Kind, who, what string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Events = append(t.Events, Event{t.since(when), who, fmt.Sprintf(what, args...), kind})
}

// span notes how long somebody has believed that he has the lock. An empty token is left out.
func (t *Timeline) span(from, to time.Time, who, token string) {
	t.Spans = append(t.Spans, Span{t.since(from), t.since(to), who, token})
}

func (t *Timeline) since(when time.Time) float64 {
	return float64(when.Sub(t.began).Microseconds()) / 1000
}

// lasted is a time for people to read.
func lasted(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// raced notes a race as a row.
func (r *Run) raced(lock string, report load.Report) {
	r.row(lock, len(report.Instances), report.Fencing, report.Limit, report.Outcomes["created"], report.Sold+report.Held, report.Oversold)
}

// exact tells whether a race has sold every unit, and none twice.
func exact(report load.Report, stock int) bool {
	return report.OK && report.Sold+report.Held == int64(stock) && report.Outcomes["created"] == stock
}

// bar notes a value for the picture.
func (r *Run) bar(label, part string, value float64) {
	r.Bars = append(r.Bars, Bar{label, value, part})
}
