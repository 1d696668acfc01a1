package bench

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/report"
)

// Report is what a benchmark has found.
type Report struct {
	Taken    time.Time `json:"taken"`
	Platform string    `json:"platform"`
	CPUs     int       `json:"cpus"`
	Servers  []string  `json:"servers"`
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"`            // of one measurement
	Failures []string  `json:"failures,omitempty"` // wrong answers, and errors
	Verdicts []Verdict `json:"targets"`
	Results  []Result  `json:"results"`
}

// Result is what one contender has done in one scenario.
type Result struct {
	Contender string   `json:"contender"`
	Scenario  Scenario `json:"scenario"`
	PerSecond Span     `json:"answers_per_second"`
	P50       Span     `json:"p50_ms"`
	P99       Span     `json:"p99_ms"`
	Samples   []Sample `json:"samples"` // by round
}

// Span is the median over the rounds, and how far they are apart.
type Span struct {
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

func span(values []float64) Span {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return Span{Median: (values[(n-1)/2] + values[n/2]) / 2, Least: values[0], Most: values[n-1]}
}

func newResult(c Contender, s Scenario, samples []Sample) Result {
	r := Result{Contender: c.Name, Scenario: s, Samples: samples}
	r.PerSecond, r.P50, r.P99 = span(each(samples, perSecond)), span(each(samples, p50)), span(each(samples, p99))
	return r
}

// figure is one of the figures of a sample.
type figure func(Sample) float64

func perSecond(s Sample) float64 { return s.PerSecond }
func p50(s Sample) float64       { return s.P50 }
func p99(s Sample) float64       { return s.P99 }

func each(samples []Sample, f figure) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = f(s)
	}
	return values
}

// cell is one contender in one scenario.
type cell struct {
	contender string
	scenario  Scenario
}

func (r *Report) result(c cell) *Result {
	i := slices.IndexFunc(r.Results, func(x Result) bool { return x.Contender == c.contender && x.Scenario == c.scenario })
	if i < 0 {
		return nil
	}
	return &r.Results[i]
}

// ratio divides round by round: what disturbs a round disturbs both.
func (r *Report) ratio(over, under cell, f figure) (Span, bool) {
	a, b := r.result(over), r.result(under)
	if a == nil || b == nil {
		return Span{}, false
	}
	ratios := make([]float64, len(a.Samples))
	for i := range ratios {
		x, y := f(a.Samples[i]), f(b.Samples[i])
		// A contender that did nothing at all in the time counts as one answer.
		ratios[i] = max(x, 1/r.Seconds) / max(y, 1/r.Seconds)
		if y > 0 && x > 0 {
			ratios[i] = x / y
		}
	}
	return span(ratios), true
}

// target is a ratio that is to be at least so much, and that is aimed at.
type target struct {
	group       string
	text        string
	over, under cell
	figure      figure
	least, aim  float64
}

// Verdict is what became of a target.
type Verdict struct {
	Group string  `json:"group"`
	Text  string  `json:"text"`
	Ratio Span    `json:"ratio"`
	Least float64 `json:"least"`
	Aim   float64 `json:"aim"`
	Met   bool    `json:"met"` // by the median
}

func targets(scenarios []Scenario) []target {
	hot := Scenario{Clients: crowd, Items: 1, Instances: 1}
	single, many, two := hot, hot, hot
	single.Clients, many.Items, two.Instances = 1, spread, 2
	var all []target
	against := func(s Scenario, ours, peer string, least, aim float64) {
		all = append(all, target{s.String() + ": answers/s", ours + " / " + peer, cell{ours, s}, cell{peer, s}, perSecond, least, aim})
	}
	against(hot, "redis", "pgx-update", 5, 10)
	against(hot, "redis", "bsm-redislock", 20, 50)
	against(hot, "redis", "redsync-1", 30, 50)
	against(hot, "redlock", "redsync-5", 100, 200)
	against(hot, "zookeeper", "go-zookeeper", 20, 40)
	against(hot, "postgres", "pgx-for-update", 6, 10)
	pairs := [][2]string{
		{"redis", "bsm-redislock"},
		{"redis", "redsync-1"},
		{"redlock", "redsync-5"},
		{"zookeeper", "go-zookeeper"},
		{"postgres", "pgx-for-update"},
	}
	for _, p := range pairs {
		all = append(all, target{
			hot.String() + ": p99", p[1] + " / " + p[0],
			cell{p[1], hot},
			cell{p[0], hot},
			p99, 10, 20,
		})
	}
	for _, p := range pairs {
		against(single, p[0], p[1], 1, 1.3)
	}
	against(many, "redis", "bsm-redislock", 1.2, 1.2)
	against(many, "zookeeper", "go-zookeeper", 1.2, 1.2)
	against(many, "postgres", "pgx-for-update", 1.1, 2)
	shared := []string{"postgres", "redis", "redlock", "zookeeper"}
	for _, name := range shared {
		all = append(all, target{
			"hot item, 64 clients: answers/s of two instances together / of one", name,
			cell{name, two},
			cell{name, hot},
			perSecond, 0.9, 1.2,
		})
	}
	for _, s := range scenarios {
		if !s.Growth || s.Stored == 0 {
			continue
		}
		none := s
		none.Stored = 0
		for _, name := range shared {
			all = append(all, target{
				s.String() + ": answers/s with / without", name,
				cell{name, s},
				cell{name, none},
				perSecond, 0.9, 1,
			})
		}
	}
	return all
}

// judge leaves out the targets of what was not measured.
func (r *Report) judge(targets []target) []Verdict {
	var verdicts []Verdict
	for _, t := range targets {
		if ratio, measured := r.ratio(t.over, t.under, t.figure); measured {
			verdicts = append(verdicts, Verdict{t.group, t.text, ratio, t.least, t.aim, ratio.Median >= t.least})
		}
	}
	return verdicts
}

// Setting says where and how the figures were taken.
func (r *Report) Setting() string {
	servers := slices.Clone(r.Servers)
	for i, s := range servers {
		servers[i] = strings.Replace(s, "-1 ", " ", 1) // the five Redis are alike
	}
	servers = slices.DeleteFunc(servers, func(s string) bool { return strings.Contains(s, "-") })
	return fmt.Sprintf("%s, %s, %s. Medians of %s of %s s, with the least and the most in brackets. "+
		"The load, the services and the servers shared one machine.",
		report.Plural(r.CPUs, "CPU"), r.Platform, strings.Join(servers, ", "), report.Plural(r.Rounds, "round"), strconv.FormatFloat(r.Seconds, 'g', 3, 64))
}

// Targets has the ratios that are to be reached, one table for each kind.
func (r *Report) Targets() []report.Table {
	var tables []report.Table
	for _, v := range r.Verdicts {
		if len(tables) == 0 || tables[len(tables)-1].Title != v.Group {
			tables = append(tables, report.Table{Title: v.Group, Header: []string{"", "ratio", "target", "aim", "met"}})
		}
		met := "no"
		if v.Met {
			met = "yes"
		}
		t := &tables[len(tables)-1]
		t.Rows = append(t.Rows, []string{v.Text, bracketed(v.Ratio), "≥ " + report.Number(v.Least), report.Number(v.Aim), met})
	}
	return tables
}

// Tables has one table for each scenario.
func (r *Report) Tables() []report.Table {
	var tables []report.Table
	for _, result := range r.Results {
		title := result.Scenario.String()
		if len(tables) == 0 || tables[len(tables)-1].Title != title {
			tables = append(tables, report.Table{
				Title:  title,
				Header: []string{"", "answers/s", "p50 ms", "p99 ms", "unanswered", "answers/s / a peer's"},
			})
		}
		unanswered := 0
		for _, s := range result.Samples {
			unanswered += s.Unanswered
		}
		t := &tables[len(tables)-1]
		t.Rows = append(t.Rows, []string{
			result.Contender, bracketed(result.PerSecond),
			report.Number(result.P50.Median), report.Number(result.P99.Median), report.Number(float64(unanswered)), r.besides(result),
		})
	}
	return tables
}

// besides compares a strategy with its peers.
func (r *Report) besides(result Result) string {
	i := slices.IndexFunc(Contenders, func(c Contender) bool { return c.Name == result.Contender })
	var parts []string
	for _, peer := range Contenders[i].Peers {
		ratio, ok := r.ratio(cell{result.Contender, result.Scenario}, cell{peer, result.Scenario}, perSecond)
		if ok {
			parts = append(parts, bracketed(ratio)+" "+peer)
		}
	}
	return strings.Join(parts, ", ")
}

// Print writes all tables for a terminal.
func (r *Report) Print(out io.Writer) error {
	fmt.Fprintln(out, r.Setting())
	for _, t := range append(r.Tables(), r.Targets()...) {
		fmt.Fprintln(out)
		if err := t.Print(out); err != nil {
			return err
		}
	}
	if len(r.Failures) > 0 {
		fmt.Fprintf(out, "\nFAILED, and left out above:\n%s\n", strings.Join(r.Failures, "\n"))
	}
	return nil
}

// Markdown is the setting, and the targets as one table.
func (r *Report) Markdown() string {
	var all report.Table
	for _, t := range r.Targets() {
		all.Header = t.Header
		all.Rows = append(all.Rows, append([]string{"**" + t.Title + "**"}, make([]string, len(t.Header)-1)...))
		all.Rows = append(all.Rows, t.Rows...)
	}
	if len(all.Rows) == 0 {
		return r.Setting() + "\n\n"
	}
	return r.Setting() + "\n\n" + all.Markdown()
}

// bracketed is a median with the least and the most behind it.
func bracketed(s Span) string {
	return fmt.Sprintf("%s (%s–%s)", report.Number(s.Median), report.Number(s.Least), report.Number(s.Most))
}
