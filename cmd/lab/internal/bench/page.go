package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
)

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// WriteHTML writes one page that needs no other file and no network.
func (r *Report) WriteHTML(out io.Writer) error {
	return pageTemplate.Execute(out, struct {
		*Report
		Charts []chart
		Legend []style
	}{r, r.charts(), r.legend()})
}

// style is how a contender is drawn: a colour for each family, whole lines for the strategies.
type style struct {
	Name, Color, Dash string
}

var colors = map[string]string{
	"none": "#777777", "local": "#d99000", "postgres": "#2166ac", "redis": "#c0392b", "redlock": "#8e44ad", "zookeeper": "#1b8a3a",
}

func styleOf(c Contender) style {
	s := style{Name: c.Name, Color: colors[c.Family]}
	if !c.Ours() {
		s.Dash = "5 4"
		if i := slices.IndexFunc(Contenders, func(o Contender) bool { return len(o.Peers) > 1 && o.Peers[1] == c.Name }); i >= 0 {
			s.Dash = "1.5 4" // the second of a strategy's peers
		}
	}
	return s
}

func (r *Report) legend() []style {
	var styles []style
	for _, c := range Contenders {
		if slices.ContainsFunc(r.Results, func(x Result) bool { return x.Contender == c.Name }) {
			styles = append(styles, styleOf(c))
		}
	}
	return styles
}

// chart has one line for each contender over a row of scenarios, on a logarithmic scale.
type chart struct {
	Title string
	X, Y  []tick
	Lines []line
}

type tick struct {
	At   float64
	Text string
}

type line struct {
	style
	Path   string
	Points []point
}

// point has a whisker from the least to the most of the rounds.
type point struct {
	X, Y, Low, High float64
	Text            string
}

// The plot's place within a chart of 560 by 360, as page.html has it.
const plotLeft, plotRight, plotTop, plotBottom = 70, 545, 15, 320

// column is a scenario with the label under it.
type column struct {
	scenario Scenario
	label    string
}

func (r *Report) charts() []chart {
	series := []struct {
		title string
		label func(Scenario) (string, bool) // false: not part of it
	}{
		{"hot item, 1 instance, by clients", func(s Scenario) (string, bool) {
			return number(float64(s.Clients)), s.Items == 1 && s.Instances == 1 && !s.Growth
		}},
		{"hot item, 64 clients, by instances", func(s Scenario) (string, bool) {
			return number(float64(s.Instances)), s.Items == 1 && s.Clients == crowd && !s.Growth
		}},
		{"64 clients, 1 instance, by items", func(s Scenario) (string, bool) {
			return number(float64(s.Items)), s.Instances == 1 && s.Clients == crowd && !s.Growth
		}},
		{"hot item, 64 clients, by stored reservations", func(s Scenario) (string, bool) {
			return number(float64(s.Stored)), s.Growth && s.Items == 1
		}},
		{"1,000 items, 64 clients, by stored reservations", func(s Scenario) (string, bool) {
			return number(float64(s.Stored)), s.Growth && s.Items > 1
		}},
	}
	var charts []chart
	for _, kind := range series {
		var columns []column
		for _, result := range r.Results {
			label, part := kind.label(result.Scenario)
			if part && !slices.Contains(columns, column{result.Scenario, label}) {
				columns = append(columns, column{result.Scenario, label})
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

func (r *Report) chart(title string, columns []column, value func(*Result) Span) chart {
	c := chart{Title: title}
	low, high := math.Inf(1), math.Inf(-1)
	for _, contender := range Contenders {
		for _, column := range columns {
			if result := r.result(cell{contender.Name, column.scenario}); result != nil && value(result).Least > 0 {
				low, high = min(low, value(result).Least), max(high, value(result).Most)
			}
		}
	}
	if high < low {
		return c
	}
	low, high = math.Floor(math.Log10(low)), math.Ceil(math.Log10(high)+1e-9)
	y := func(v float64) float64 {
		return plotBottom - (math.Log10(v)-low)/(high-low)*(plotBottom-plotTop)
	}
	for exponent := low; exponent <= high; exponent++ {
		v := math.Pow(10, exponent)
		c.Y = append(c.Y, tick{y(v), number(v)})
	}
	x := func(i int) float64 {
		return plotLeft + (float64(i)+0.5)/float64(len(columns))*(plotRight-plotLeft)
	}
	for i, column := range columns {
		c.X = append(c.X, tick{x(i), column.label})
	}
	for _, contender := range Contenders {
		l := line{style: styleOf(contender)}
		for i, column := range columns {
			result := r.result(cell{contender.Name, column.scenario})
			if result == nil || value(result).Least <= 0 {
				continue
			}
			v := value(result)
			p := point{x(i), y(v.Median), y(v.Least), y(v.Most), contender.Name + ": " + bracketed(v)}
			command := "L"
			if len(l.Points) == 0 {
				command = "M"
			}
			l.Path += fmt.Sprintf("%s%.1f %.1f", command, p.X, p.Y)
			l.Points = append(l.Points, p)
		}
		if len(l.Points) > 0 {
			c.Lines = append(c.Lines, l)
		}
	}
	return c
}
