package experiments

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/report"
	"fencepost/cmd/lab/internal/servers"
)

// Report is all that experiments have found, and where.
type Report struct {
	Taken    time.Time `json:"taken"`
	Platform string    `json:"platform"`
	CPUs     int       `json:"cpus"`
	Servers  []string  `json:"servers"`
	Results  []Result  `json:"results"`
}

// NewReport makes the report of what was run in the laboratory.
func NewReport(lab *servers.Lab, results []Result) *Report {
	r := &Report{
		Taken: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Results: results,
		Platform: runtime.GOOS + "/" + runtime.GOARCH + ", " + runtime.Version(),
	}
	for _, s := range lab.Servers {
		if name := strings.TrimSuffix(s.Name, "-1"); !strings.Contains(name, "-") { // one Redis stands for all
			r.Servers = append(r.Servers, name+" "+s.Version)
		}
	}
	return r
}

// Setting says where and when the figures were taken.
func (r *Report) Setting() string {
	return fmt.Sprintf("%s, %s, %s. The instances, the servers and the buyers shared one machine.",
		report.Plural(r.CPUs, "CPU"), r.Platform, strings.Join(r.Servers, ", "))
}

// Print writes for a terminal what an experiment has found.
func (r *Result) Print(out io.Writer) error {
	fmt.Fprintf(out, "\n%s: %s, %.1f s\n%s\n", r.Name, r.Verdict(), r.Seconds, r.Claim)
	if r.Control != "" {
		fmt.Fprintln(out, "Control:", r.Control)
	}
	if r.Error != "" {
		fmt.Fprintln(out, "No verdict:", r.Error)
	}
	for _, f := range r.Findings {
		mark := "yes"
		if !f.OK {
			mark = "NO "
		}
		fmt.Fprintf(out, "  %s  %-7s  %s: %s\n", mark, f.Of, f.Want, f.Saw)
	}
	if len(r.Rows) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	return report.Table{Header: r.Header, Rows: r.Rows}.Print(out)
}

//go:embed page.html
var pageHTML string

var page = report.Page(pageHTML)

// WriteHTML writes one page that needs no other file and no network.
func (r *Report) WriteHTML(out io.Writer) error { return page.Execute(out, r) }

// Color is that of the verdict.
func (r Result) Color() report.Color {
	if r.OK {
		return report.Green
	}
	return report.Red
}

// Color is green where it is as it should be.
func (f Finding) Color() report.Color {
	if f.OK {
		return report.Green
	}
	return report.Red
}

// Table is the result's rows.
func (r Result) Table() *report.Table {
	if len(r.Rows) == 0 {
		return nil
	}
	return &report.Table{Header: r.Header, Rows: r.Rows}
}

// picture is a timeline as it is drawn: a lane for everybody who took part.
type picture struct {
	Title  string
	Lanes  []*lane
	Events []mark
}

type lane struct {
	Who   string
	Token string
	Spans []stretch
	Marks []mark
}

// stretch is a part of a lane, in percent of its length.
type stretch struct {
	From, Width float64
}

// mark is an event with its number, and its place in percent of its lane's length.
type mark struct {
	Event
	Number int
	At     float64
}

// Time is in seconds since the first event.
func (m mark) Time() string { return fmt.Sprintf("%.3f s", m.Milliseconds/1000) }

// Color says at a glance what the event means.
func (e Event) Color() report.Color {
	switch e.Kind {
	case Fault:
		return report.Amber
	case Accept:
		return report.Green
	case Refuse:
		return report.Purple
	case Mistake:
		return report.Red
	}
	return report.Grey
}

// closest is how near two marks of a lane may come, in percent: on a narrow screen they would cover each other.
const closest = 8

// Picture is for the template.
func (t *Timeline) Picture() *picture {
	if len(t.Events) == 0 {
		return nil
	}
	events := slices.Clone(t.Events)
	slices.SortStableFunc(events, func(a, b Event) int { return cmp.Compare(a.Milliseconds, b.Milliseconds) })
	begin, end := events[0].Milliseconds, events[len(events)-1].Milliseconds
	for _, s := range t.Spans {
		begin, end = min(begin, s.From), max(end, s.To)
	}
	percent := func(ms float64) float64 { return math.Round(1000*ms/max(end-begin, 1)) / 10 }
	p := &picture{Title: t.Title}
	lanes := map[string]*lane{}
	for i, e := range events {
		l := lanes[e.Who]
		if l == nil {
			l = &lane{Who: e.Who}
			lanes[e.Who] = l
			p.Lanes = append(p.Lanes, l)
		}
		m := mark{Event: e, Number: i + 1, At: percent(e.Milliseconds - begin)}
		m.Milliseconds -= begin
		l.Marks = append(l.Marks, m)
		p.Events = append(p.Events, m)
	}
	for _, l := range p.Lanes {
		l.spread()
	}
	for _, s := range t.Spans {
		if l := lanes[s.Who]; l != nil {
			l.Token = s.Token
			l.Spans = append(l.Spans, stretch{percent(s.From - begin), percent(s.To - s.From)})
		}
	}
	return p
}

// spread moves marks that are too close apart, and none beyond the end.
func (l *lane) spread() {
	for i := 1; i < len(l.Marks); i++ {
		l.Marks[i].At = max(l.Marks[i].At, l.Marks[i-1].At+closest)
	}
	for i, most := len(l.Marks)-1, 100.0; i >= 0; i, most = i-1, most-closest {
		l.Marks[i].At = min(l.Marks[i].At, most)
	}
}

// bars are the values of a result, one below the other.
type bars struct {
	Unit string
	Bars []drawnBar
}

type drawnBar struct {
	Label, Text string
	Percent     float64
	Color       report.Color
}

// Chart is nil if there is none.
func (r Result) Chart() *bars {
	if len(r.Bars) == 0 {
		return nil
	}
	most := slices.MaxFunc(r.Bars, func(a, b Bar) int { return cmp.Compare(a.Value, b.Value) }).Value
	c := &bars{Unit: r.BarUnit}
	for _, b := range r.Bars {
		strategy, _, _ := strings.Cut(b.Label, ",")
		d := drawnBar{Label: b.Label, Text: report.Number(b.Value), Percent: math.Round(1000*b.Value/max(most, 1e-9)) / 10}
		d.Color = report.StrategyColor(strategy)
		if b.Part != "" {
			d.Label += ", " + b.Part
		}
		c.Bars = append(c.Bars, d)
	}
	return c
}
