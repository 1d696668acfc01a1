package load

import (
	_ "embed"
	"fmt"
	"io"
	"math"

	"fencepost/cmd/lab/internal/report"
)

//go:embed page.html
var pageHTML string

var page = report.Page(pageHTML)

// WriteHTML writes one page that needs no other file and no network.
func (s Summary) WriteHTML(out io.Writer) error { return page.Execute(out, s) }

// Curves has the latency over the percentiles, one line for each run.
func (s Summary) Curves() report.Chart {
	// Each further nine takes as much room as the one before.
	room := func(percentile float64) float64 { return -math.Log10(1 - percentile/100) }
	c := report.Chart{Title: "latency in ms, by percentile", XLabel: "percent of the attempts are faster", Y: report.Axis{Log: true}}
	for _, r := range s.Runs {
		line := report.Series{Name: orDefault(r.Strategy), Color: report.StrategyColor(r.Strategy)}
		for _, p := range r.Curve {
			if p.Percentile < 100 {
				line.Points = append(line.Points, report.Point{X: room(p.Percentile), Y: p.Milliseconds})
				c.X.Max = max(c.X.Max, room(p.Percentile))
			}
		}
		c.Series = append(c.Series, line)
	}
	for _, percentile := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999} {
		if at := room(percentile); at <= c.X.Max {
			c.X.Ticks = append(c.X.Ticks, report.Tick{At: at, Text: fmt.Sprint(percentile)})
		}
	}
	return c
}

// outcomesOverTime has bars that have a part for each code.
func (r Report) outcomesOverTime() report.Chart {
	c := report.Chart{
		Title: "outcomes in each " + r.span(), XLabel: "seconds", Bars: true,
		X: report.Axis{Max: r.Span * float64(len(r.Timeline))},
	}
	others := []report.Color{report.Teal, report.Pink, report.Blue, report.Brown}
	for _, code := range r.Codes() {
		s := report.Series{Name: code}
		switch code {
		case created:
			s.Color = report.Green
		case noAnswer:
			s.Color = report.Red
		case "out_of_stock", "coupon_exhausted":
			s.Color = report.Grey
		case "lock_timeout":
			s.Color = report.Amber
		case "stale_fencing_token":
			s.Color = report.Purple
		default:
			s.Color = others[0]
			others = append(others[1:], others[0])
		}
		for _, m := range r.Timeline {
			s.Points = append(s.Points, report.Point{X: m.Second + r.Span/2, Y: float64(m.Outcomes[code])})
		}
		c.Series = append(c.Series, s)
	}
	return c
}

// span is the length of a moment in words.
func (r Report) span() string {
	if r.Span < 1 {
		return report.Number(1000*r.Span) + " ms"
	}
	return report.Number(r.Span) + " s"
}

func (r Report) latencyOverTime() report.Chart {
	c := report.Chart{
		Title: "latency in ms, of what ended in each " + r.span(), XLabel: "seconds",
		X: report.Axis{Max: r.Span * float64(len(r.Timeline))}, Y: report.Axis{Log: true},
	}
	p50, p99 := report.Series{Name: "p50", Color: report.Blue}, report.Series{Name: "p99", Color: report.Blue, Dash: "5 4"}
	for _, m := range r.Timeline {
		p50.Points = append(p50.Points, report.Point{X: m.Second + r.Span/2, Y: m.P50})
		p99.Points = append(p99.Points, report.Point{X: m.Second + r.Span/2, Y: m.P99})
	}
	c.Series = []report.Series{p50, p99}
	return c
}

// Charts are those of a single run.
func (r Report) Charts() []report.Chart {
	return []report.Chart{r.outcomesOverTime(), r.latencyOverTime()}
}
