package bench

import (
	_ "embed"
	"io"
	"slices"

	"fencepost/cmd/lab/internal/report"
)

//go:embed page.html
var pageHTML string

var page = report.Page(pageHTML)

// WriteHTML writes one page that needs no other file and no network.
func (r *Report) WriteHTML(out io.Writer) error {
	return page.Execute(out, struct {
		*Report
		Charts []report.Chart
		Legend []report.Series
	}{r, r.charts(), r.legend()})
}

// seriesOf is how a contender is drawn: a colour for each family, whole lines for the strategies.
func seriesOf(c Contender) report.Series {
	s := report.Series{Name: c.Name, Color: report.StrategyColor(c.Family)}
	if !c.Ours() {
		s.Dash = "5 4"
		if i := slices.IndexFunc(Contenders, func(o Contender) bool { return len(o.Peers) > 1 && o.Peers[1] == c.Name }); i >= 0 {
			s.Dash = "1.5 4" // the second of a strategy's peers
		}
	}
	return s
}

func (r *Report) legend() []report.Series {
	var series []report.Series
	for _, c := range Contenders {
		if slices.ContainsFunc(r.Results, func(x Result) bool { return x.Contender == c.Name }) {
			series = append(series, seriesOf(c))
		}
	}
	return series
}

// column is a scenario with the label under it.
type column struct {
	scenario Scenario
	label    string
}

func (r *Report) charts() []report.Chart {
	series := []struct {
		title string
		label func(Scenario) (n int, part bool) // false: not part of it
	}{
		{"hot item, 1 instance, by clients", func(s Scenario) (int, bool) {
			return s.Clients, s.Items == 1 && s.Instances == 1 && !s.Growth
		}},
		{"hot item, 64 clients, by instances", func(s Scenario) (int, bool) {
			return s.Instances, s.Items == 1 && s.Clients == crowd && !s.Growth
		}},
		{"64 clients, 1 instance, by items", func(s Scenario) (int, bool) {
			return s.Items, s.Instances == 1 && s.Clients == crowd && !s.Growth
		}},
		{"hot item, 64 clients, by stored reservations", func(s Scenario) (int, bool) {
			return s.Stored, s.Growth && s.Items == 1
		}},
		{"1,000 items, 64 clients, by stored reservations", func(s Scenario) (int, bool) {
			return s.Stored, s.Growth && s.Items > 1
		}},
	}
	var charts []report.Chart
	for _, kind := range series {
		var columns []column
		for _, result := range r.Results {
			n, part := kind.label(result.Scenario)
			c := column{result.Scenario, report.Number(float64(n))}
			if part && !slices.Contains(columns, c) {
				columns = append(columns, c)
			}
		}
		if len(columns) < 2 {
			continue
		}
		charts = append(charts,
			r.chart("answers/s: "+kind.title, columns, func(x *Result) Span { return x.PerSecond }),
			r.chart("p99 in ms: "+kind.title, columns, func(x *Result) Span { return x.P99 }))
	}
	return charts
}

// chart has one line for each contender over a row of scenarios, on a logarithmic scale.
func (r *Report) chart(title string, columns []column, value func(*Result) Span) report.Chart {
	labels := make([]string, len(columns))
	for i, c := range columns {
		labels[i] = c.label
	}
	chart := report.Chart{Title: title, X: report.Columns(labels), Y: report.Axis{Log: true}}
	for _, contender := range Contenders {
		s := seriesOf(contender)
		for i, column := range columns {
			if result := r.result(cell{contender.Name, column.scenario}); result != nil {
				v := value(result)
				s.Points = append(s.Points, report.Point{
					X: float64(i), Y: v.Median, Low: v.Least, High: v.Most, Text: contender.Name + ": " + bracketed(v),
				})
			}
		}
		if len(s.Points) > 0 {
			chart.Series = append(chart.Series, s)
		}
	}
	return chart
}
