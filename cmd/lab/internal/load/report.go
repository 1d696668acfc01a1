package load

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/report"
)

// Report is what came of a race. What is sold is the database's count; the outcomes and the times are the clients'. Where
// there are several resources, the numbers are sums.
type Report struct {
	Resource string   `json:"resource"` // all of them as one name
	Race     string   `json:"race"`     // what was done, in words
	Strategy string   `json:"strategy"`
	Fencing  string   `json:"fencing"`
	Verdict  string   `json:"verdict"`
	Audited  bool     `json:"audited"`         // false: there is no verdict, and nothing of the database's here
	OK       bool     `json:"ok"`              // the database's verdict, nothing is missing, and there is nothing that nobody asked for
	Notes    []string `json:"notes,omitempty"` // what a reader of the figures should know

	Limit     int64 `json:"limit"`
	Sold      int64 `json:"sold"`
	Held      int64 `json:"held"`
	Oversold  int64 `json:"oversold"`
	Drift     int64 `json:"drift"`   // by how much the counters are wrong
	Refused   int64 `json:"refused"` // stale writes that the fence turned away
	Missing   int64 `json:"missing"` // a client was told yes, and the database does not know of it
	Surplus   int64 `json:"surplus"` // given out beyond what clients were told, and those may have who were told nothing
	Resources []Row `json:"resources"`

	Requests  int              `json:"requests"` // attempts that were sent
	Unsent    int              `json:"unsent"`   // attempts that the time-out or an interrupt prevented
	Outcomes  map[string]int   `json:"outcomes"` // of attempts, by the code of the last answer
	Retried   map[string]int   `json:"retried"`  // sends that were followed by another one of the same attempt, by code
	Replayed  int              `json:"replayed"` // attempts whose last answer was one that had been given before
	Late      int              `json:"late"`     // attempts of an open loop that began behind their time: all buyers were busy
	Instances []InstanceReport `json:"instances"`
	Latency   Latency          `json:"latency_ms"`
	Curve     []Percentile     `json:"latency_curve"`
	Seconds   float64          `json:"seconds"`
	PerSecond float64          `json:"answers_per_second"`
	Span      float64          `json:"timeline_span_seconds"` // of a moment
	Timeline  []Moment         `json:"timeline"`
}

// InstanceReport is the share of one instance.
type InstanceReport struct {
	URL      string         `json:"url"`
	Outcomes map[string]int `json:"outcomes"` // of attempts that it was the last to be asked
	Retried  int            `json:"retried"`  // sends to it that were followed by another one
	Gone     string         `json:"gone,omitempty"`
}

// Latency is over all attempts that got an answer, from when they were due until the last answer was read.
type Latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Percentile is a point of the latency's distribution.
type Percentile struct {
	Percentile   float64 `json:"percentile"`
	Milliseconds float64 `json:"ms"`
}

// Moment is a span of the race: what ended in it.
type Moment struct {
	Second   float64        `json:"second"` // of its beginning
	Outcomes map[string]int `json:"outcomes"`
	P50      float64        `json:"p50_ms"` // 0: nothing was answered
	P99      float64        `json:"p99_ms"`
}

// verdict looks who is still there, and asks them for the audit.
func (r *race) verdict(ctx context.Context) Report {
	c := newClient(r.Key, aside, 0) // the buyers' patience is not the judge's
	defer c.CloseIdleConnections()
	var present []string
	for i, err := range c.attendance(ctx, r.Instances) {
		if err != nil {
			r.byInstance[i].Gone = err.Error()
		} else {
			present = append(present, r.Instances[i])
		}
	}
	result := r.result()
	if rows, err := c.audit(ctx, present, r.resources()); err != nil {
		result.Verdict = fmt.Sprintf("there is no verdict: %s", err)
	} else {
		result.judge(r, rows)
	}
	result.Notes = r.notes(result)
	return result
}

// result has all that needs no database.
func (r *race) result() Report {
	result := Report{
		Resource: r.goods.String(), Race: r.Options.String(), Strategy: r.Strategy, Fencing: r.Fencing,
		Requests: r.sent, Outcomes: map[string]int{}, Retried: r.retried, Replayed: r.replayed, Late: r.late, Instances: r.byInstance,
		Latency: Latency{
			P50: percentile(r.latencies, 50, r.slowest), P95: percentile(r.latencies, 95, r.slowest),
			P99: percentile(r.latencies, 99, r.slowest), Max: float64(microseconds(r.slowest)) / 1000,
		},
		Curve: r.curve(), Seconds: r.took.Seconds(), Span: r.timeline.width.Seconds(), Timeline: r.timeline.moments(),
	}
	if r.requests > 0 {
		result.Unsent = r.requests - r.sent
	}
	if result.Seconds > 0 {
		result.PerSecond = math.Round(float64(r.answered)/result.Seconds*10) / 10
	}
	for _, instance := range r.byInstance {
		for code, n := range instance.Outcomes {
			result.Outcomes[code] += n
		}
	}
	return result
}

// judge compares the database's count with what clients were told.
func (r *Report) judge(of *race, rows []Row) {
	r.Audited, r.OK, r.Resources = true, true, rows
	r.Strategy, r.Fencing = rows[0].Strategy, rows[0].Fencing
	for i, row := range rows {
		r.Limit += row.Limit
		r.Sold += row.Sold
		r.Held += row.Held
		r.Oversold += row.Oversold
		r.Drift += row.Drift
		r.Refused += row.Refused
		r.OK = r.OK && row.OK
		if !of.expired() {
			r.Missing += max(0, of.promised[i]-row.Sold-row.Held)
		}
		r.Surplus += max(0, row.Sold+row.Held-of.promised[i]-of.unknown[i])
	}
	r.OK = r.OK && r.Missing == 0 && r.Surplus == 0
	r.Verdict = fmt.Sprintf("sold %d of %d, oversold %d", r.Sold+r.Held, r.Limit, r.Oversold)
	if r.Drift != 0 {
		r.Verdict += fmt.Sprintf(", counters wrong by %d", r.Drift)
	}
	if r.Missing != 0 {
		r.Verdict += fmt.Sprintf(", %d that clients were promised are missing", r.Missing)
	}
	if r.Surplus != 0 {
		r.Verdict += fmt.Sprintf(", %d more than clients can know of", r.Surplus)
	}
}

// expired tells whether holds may have expired during the race. They are not counted any more, so nothing can be missed then.
func (r *race) expired() bool { return r.shortestTTL > 0 && time.Since(r.began) >= r.shortestTTL }

func (r *race) notes(result Report) (notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, instance := range result.Instances {
		if instance.Gone != "" {
			note("%s does not answer any more (%s): no answer to %s, and %d sent again to the next", instance.URL, instance.Gone,
				report.Plural(instance.Outcomes[noAnswer], "attempt"), instance.Retried)
		}
	}
	if result.Unsent > 0 {
		note("stopped early, and never made: %s", report.Plural(result.Unsent, "attempt"))
	}
	if r.late > 0 {
		note("begun later than due, by up to %d ms, because all %d buyers were busy: %s; the wait counts",
			r.latest.Milliseconds(), r.Buyers, report.Plural(r.late, "attempt"))
	}
	if result.Audited && r.expired() {
		note("holds may have expired during the race, so it cannot be told whether any is missing")
	}
	for _, row := range result.Resources {
		if !row.OK && row.Oversold == 0 && row.Drift == 0 {
			note("%s: %s", row.Resource, strings.Join(row.Findings, "; "))
		}
	}
	return notes
}

// Codes lists the codes of the outcomes, most frequent first.
func (r Report) Codes() []string { return byFrequency(r.Outcomes) }

func byFrequency(counts map[string]int) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}
