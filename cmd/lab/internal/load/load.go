// Package load has many buyers race for one limited resource over every instance of the service, and takes the verdict from
// the database's own count. It speaks HTTP and imports nothing of the service: it sees what any client sees.
//
// It promises that every attempt is sent once and counted once. It never repeats one that was refused or got no answer: a
// silent retry would hide what the lock could not do, and would sell twice where an answer was lost.
package load

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// patience is how long a single request may take. It is longer than the service allows itself.
const patience = 30 * time.Second

// Options say what to race for and how. All fields but Key, Strategy, Fencing and Progress are required.
type Options struct {
	Instances []string // base URLs
	Key       string   // API key; the race creates what it races for, which takes an admin's key
	Coupon    bool     // race for the uses of a coupon instead of the units of an item
	Strategy  string   // empty: the service's own choice
	Fencing   string   // empty: the service's own choice
	Limit     int      // units in stock, or uses of the coupon
	Buyers    int      // clients at the same time; at least one for each instance
	Requests  int      // attempts in all
	Timeout   time.Duration
	Progress  func(Progress) // called several times a second while the race runs
}

// Progress is how far a race has come.
type Progress struct{ Answered, Created, Requests int }

// Report is what came of a race. What is sold is the database's count; the outcomes and the times are the clients'.
type Report struct {
	Resource string `json:"resource"`
	Strategy string `json:"strategy"`
	Fencing  string `json:"fencing"`
	Verdict  string `json:"verdict"`
	OK       bool   `json:"ok"` // the database's verdict, and nothing is missing

	Limit    int64 `json:"limit"`
	Sold     int64 `json:"sold"`
	Held     int64 `json:"held"`
	Oversold int64 `json:"oversold"`
	Drift    int64 `json:"drift"`   // by how much the counters are wrong
	Refused  int64 `json:"refused"` // stale writes that the fence turned away
	Missing  int64 `json:"missing"` // a client was told yes, and the database does not know of it

	Requests  int              `json:"requests"` // attempts that were sent
	Unsent    int              `json:"unsent"`   // attempts that the time-out or an interrupt prevented
	Outcomes  map[string]int   `json:"outcomes"` // by code
	Instances []InstanceReport `json:"instances"`
	Latency   Latency          `json:"latency_ms"`
	Seconds   float64          `json:"seconds"`
	PerSecond float64          `json:"answers_per_second"`
}

// InstanceReport is the share of one instance.
type InstanceReport struct {
	URL      string         `json:"url"`
	Outcomes map[string]int `json:"outcomes"`
}

// Latency is over all attempts that got an answer, from sending until the answer was read.
type Latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// The codes of outcomes that have no problem document.
const (
	created  = "created"
	noAnswer = "no_answer"
)

// Discover asks one instance for the base URLs of all. A service that asks for keys does not tell; then it is that instance
// alone.
func Discover(ctx context.Context, base, key string) ([]string, error) {
	c := newClient(key, 1)
	defer c.CloseIdleConnections()
	var list struct {
		Instances []string `json:"instances"`
	}
	status, err := c.exchange(ctx, http.MethodGet, base+"/v1/instances", nil, &list)
	switch p, ok := errors.AsType[*problem](err); {
	case ok && p.Status == http.StatusNotFound:
		return []string{base}, nil
	case ok:
		return nil, fmt.Errorf("asking %s for the instances: %w", base, err)
	case err != nil:
		return nil, unreachable(base, err)
	case status == http.StatusOK && len(list.Instances) == 0:
		return []string{base}, nil
	}
	return list.Instances, nil
}

// Run holds one race. An error means that there is no verdict. When ctx or the time-out ends, no further attempt is sent;
// those on their way are waited for, and the count is taken all the same.
func Run(ctx context.Context, o Options) (Report, error) {
	c := newClient(o.Key, o.Buyers)
	defer c.CloseIdleConnections()
	if err := c.meet(ctx, o); err != nil {
		return Report{}, err
	}
	name := "load-" + strings.ToLower(rand.Text()[:12])
	resource, attempt, err := c.create(ctx, o, name)
	if err != nil {
		return Report{}, err
	}
	t := c.race(ctx, o, attempt)
	// The end of ctx ends the race, not the count.
	row, err := c.audit(context.WithoutCancel(ctx), o.Instances[0], resource)
	if err != nil {
		return Report{}, fmt.Errorf("the race was run, but there is no verdict: %w", err)
	}
	return t.report(o, row), nil
}

// meet makes sure that every instance is there, and opens one connection for every buyer: what the barrier lets loose
// should be requests, not handshakes.
func (c *client) meet(ctx context.Context, o Options) error {
	errs := make([]error, o.Buyers)
	var wg sync.WaitGroup
	for b := range o.Buyers {
		wg.Go(func() {
			base := o.Instances[b%len(o.Instances)]
			_, err := c.exchange(ctx, http.MethodGet, base+"/healthz", nil, nil)
			if p, ok := errors.AsType[*problem](err); ok {
				err = fmt.Errorf("%s answers %d to /healthz: see that this is the base URL of an instance of the service", base, p.Status)
			} else if err != nil {
				err = unreachable(base, err)
			}
			errs[b] = err
		})
	}
	wg.Wait()
	return cmp.Or(errs...)
}

func unreachable(base string, err error) error {
	return fmt.Errorf("%s does not answer: start it, or name the instances that run with --instances (%w)", base, err)
}

// create makes what is raced for and returns its key and the path of an attempt on it.
func (c *client) create(ctx context.Context, o Options, name string) (resource, attempt string, err error) {
	type lock struct {
		Strategy string `json:"strategy,omitempty"`
		Fencing  string `json:"fencing,omitempty"`
	}
	path, body := "/v1/items", map[string]any{"sku": name, "name": "Load test", "stock": o.Limit}
	resource, attempt = "item/"+name, "/v1/items/"+name+"/reservations"
	if o.Coupon {
		path, body = "/v1/coupons", map[string]any{"code": name, "max_redemptions": o.Limit}
		resource, attempt = "coupon/"+name, "/v1/coupons/"+name+"/redemptions"
	}
	if l := (lock{o.Strategy, o.Fencing}); l != (lock{}) {
		body["lock"] = l
	}
	if _, err := c.exchange(ctx, http.MethodPost, o.Instances[0]+path, body, nil); err != nil {
		return "", "", fmt.Errorf("creating %s at %s: %w", resource, o.Instances[0], err)
	}
	return resource, attempt, nil
}

// race lets all buyers loose at once. Each stays with one instance and tries again and again, every time for another
// customer, until all attempts are made.
func (c *client) race(ctx context.Context, o Options, path string) *tally {
	t := newTally(o)
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	barrier := make(chan struct{})
	for b := range o.Buyers {
		wg.Go(func() {
			<-barrier
			for {
				n, ok := t.next(ctx)
				if !ok {
					return
				}
				body := map[string]any{"customer_id": fmt.Sprintf("buyer-%d", n)}
				if !o.Coupon {
					body["quantity"] = 1
				}
				var held struct {
					CreatedAt time.Time `json:"created_at"`
					ExpiresAt time.Time `json:"expires_at"`
				}
				began := time.Now()
				// A request on its way when the time is up has an outcome that only its answer tells.
				status, err := c.exchange(context.WithoutCancel(ctx), http.MethodPost, o.Instances[b%len(o.Instances)]+path, body, &held)
				t.add(b%len(o.Instances), outcome(status, err), time.Since(began), held.ExpiresAt.Sub(held.CreatedAt))
				if status == 0 || status >= 500 {
					// An instance that is down answers fastest of all. Without a pause it would use up the attempts.
					pause(ctx, 200*time.Millisecond)
				}
			}
		})
	}
	finished := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(finished, o.Progress)
	}()
	t.began = time.Now()
	close(barrier)
	wg.Wait()
	t.took = time.Since(t.began)
	close(finished)
	<-watched
	return t
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func outcome(status int, err error) string {
	p, isProblem := errors.AsType[*problem](err)
	switch {
	case status == http.StatusCreated:
		return created
	case isProblem:
		return p.name()
	case status == 0:
		return noAnswer
	}
	return fmt.Sprintf("http_%d", status)
}

// tally counts the outcomes of a race while it runs.
type tally struct {
	requests    int
	began       time.Time
	took        time.Duration
	mu          sync.Mutex
	sent        int
	answered    int
	byInstance  []map[string]int
	latencies   *hdrhistogram.Histogram // in microseconds
	slowest     time.Duration
	shortestTTL time.Duration // of the holds; 0: none was seen
}

func newTally(o Options) *tally {
	t := &tally{requests: o.Requests, latencies: hdrhistogram.New(1, int64(2*patience/time.Microsecond), 3)}
	for range o.Instances {
		t.byInstance = append(t.byInstance, map[string]int{})
	}
	return t
}

// next hands out the number of an attempt, as long as there are any and the time is not up.
func (t *tally) next(ctx context.Context) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent == t.requests || ctx.Err() != nil {
		return 0, false
	}
	t.sent++
	return t.sent, true
}

func (t *tally) add(instance int, code string, took, ttl time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byInstance[instance][code]++
	if code == noAnswer {
		return
	}
	t.answered++
	_ = t.latencies.RecordValue(took.Microseconds()) // its range is wider than what a request can take
	t.slowest = max(t.slowest, took)
	if ttl > 0 && (t.shortestTTL == 0 || ttl < t.shortestTTL) {
		t.shortestTTL = ttl
	}
}

func (t *tally) watch(finished <-chan struct{}, progress func(Progress)) {
	if progress == nil {
		return
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-finished:
			return
		case <-ticker.C:
			t.mu.Lock()
			p := Progress{Answered: t.answered, Created: t.count(created), Requests: t.requests}
			t.mu.Unlock()
			progress(p)
		}
	}
}

func (t *tally) count(code string) (n int) {
	for _, outcomes := range t.byInstance {
		n += outcomes[code]
	}
	return n
}

// auditRow is the database's count of one resource.
type auditRow struct {
	Resource string `json:"resource"`
	Limit    int64  `json:"limit"`
	Sold     int64  `json:"sold"`
	Held     int64  `json:"held"`
	Oversold int64  `json:"oversold"`
	Drift    int64  `json:"drift"`
	Refused  int64  `json:"refused"`
	Strategy string `json:"strategy"`
	Fencing  string `json:"fencing"`
	OK       bool   `json:"ok"`
}

func (c *client) audit(ctx context.Context, base, resource string) (auditRow, error) {
	var answer struct {
		Resources []auditRow `json:"resources"`
	}
	if _, err := c.exchange(ctx, http.MethodGet, base+"/v1/audit?resource="+url.QueryEscape(resource), nil, &answer); err != nil {
		return auditRow{}, fmt.Errorf("the audit of %s at %s: %w", resource, base, err)
	}
	if len(answer.Resources) != 1 || answer.Resources[0].Resource != resource {
		return auditRow{}, fmt.Errorf("the audit at %s does not know %s", base, resource)
	}
	return answer.Resources[0], nil
}

func (t *tally) report(o Options, row auditRow) Report {
	r := Report{
		Resource: row.Resource, Strategy: row.Strategy, Fencing: row.Fencing,
		Limit: row.Limit, Sold: row.Sold, Held: row.Held, Oversold: row.Oversold, Drift: row.Drift, Refused: row.Refused,
		Requests: t.sent, Unsent: t.requests - t.sent, Outcomes: map[string]int{},
		Latency: Latency{
			P50: t.percentile(50), P95: t.percentile(95), P99: t.percentile(99), Max: float64(t.slowest.Microseconds()) / 1000,
		},
		Seconds: t.took.Seconds(),
	}
	if r.Seconds > 0 {
		r.PerSecond = math.Round(float64(t.answered)/r.Seconds*10) / 10
	}
	for i, outcomes := range t.byInstance {
		r.Instances = append(r.Instances, InstanceReport{URL: o.Instances[i], Outcomes: outcomes})
		for code, n := range outcomes {
			r.Outcomes[code] += n
		}
	}
	// A hold that expired during the race is not counted any more, so nothing can be said then.
	if expired := t.shortestTTL > 0 && time.Since(t.began) >= t.shortestTTL; !expired {
		r.Missing = max(0, int64(r.Outcomes[created])-row.Sold-row.Held)
	}
	r.OK = row.OK && r.Missing == 0
	r.Verdict = fmt.Sprintf("sold %d of %d, oversold %d", r.Sold+r.Held, r.Limit, r.Oversold)
	if r.Drift != 0 {
		r.Verdict += fmt.Sprintf(", counters wrong by %d", r.Drift)
	}
	if r.Missing != 0 {
		r.Verdict += fmt.Sprintf(", %d that clients were promised are missing", r.Missing)
	}
	return r
}

// percentile is in milliseconds. The histogram answers with the upper end of a bucket, which can lie beyond the largest value.
func (t *tally) percentile(p float64) float64 {
	return float64(min(t.latencies.ValueAtPercentile(p), t.slowest.Microseconds())) / 1000
}

// Codes lists the codes of the outcomes, most frequent first.
func (r Report) Codes() []string {
	codes := make([]string, 0, len(r.Outcomes))
	for code := range r.Outcomes {
		codes = append(codes, code)
	}
	slices.SortFunc(codes, func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Outcomes[b], r.Outcomes[a]), cmp.Compare(a, b))
	})
	return codes
}

// client sends requests of which each has one outcome.
type client struct {
	http.Client
	key string
}

func newClient(key string, connections int) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	// A connection for every buyer stays open: two, the default, would have most attempts begin with a handshake.
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, connections
	return &client{
		Client: http.Client{
			Transport: transport,
			Timeout:   patience,
			// A redirect would send the attempt a second time, to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		key: key,
	}
}

// problem is an answer that is not a success.
type problem struct {
	Status int
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (p *problem) name() string { return cmp.Or(p.Code, fmt.Sprintf("http_%d", p.Status)) }

func (p *problem) Error() string {
	text := fmt.Sprintf("the service answers %d %s", p.Status, p.name())
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	switch p.Status {
	case http.StatusUnauthorized:
		text += " Set FENCEPOST_API_KEY or --api-key to an admin's key."
	case http.StatusForbidden:
		text += " The race creates what it races for, which takes an admin's key."
	}
	return text
}

// exchange sends one request and reads the answer into out. An answer that is not a success is a *problem; status 0 means
// that there was no whole answer. A POST carries no Idempotency-Key on purpose: with one, net/http takes it for
// repeatable and sends it again by itself when a kept connection breaks.
func (c *client) exchange(ctx context.Context, method, address string, in, out any) (status int, err error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return 0, err
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return 0, err
	}
	if response.StatusCode/100 != 2 {
		p := &problem{}
		_ = json.Unmarshal(data, p) // what is no problem document has its status
		p.Status = response.StatusCode
		return response.StatusCode, p
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return response.StatusCode, fmt.Errorf("%s %s: the answer is not what was expected: %w", method, address, err)
		}
	}
	return response.StatusCode, nil
}
