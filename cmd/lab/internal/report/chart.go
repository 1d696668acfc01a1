package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Chart is a plot of lines, or of bars.
type Chart struct {
	Title  string
	X, Y   Axis
	XLabel string
	Series []Series
	Bars   bool // the values of a column stand on each other
}

// Axis is one scale. What is left out is chosen as the values need it.
type Axis struct {
	Log      bool
	Min, Max float64
	Ticks    []Tick
}

// Tick is a place on an axis that has a name.
type Tick struct {
	At   float64
	Text string
}

// Columns is an axis of things that have no measure: the i-th is at i.
func Columns(labels []string) Axis {
	axis := Axis{Min: -0.5, Max: float64(len(labels)) - 0.5}
	for i, label := range labels {
		axis.Ticks = append(axis.Ticks, Tick{float64(i), label})
	}
	return axis
}

// Series is one line of a chart, or one part of its bars.
type Series struct {
	Name   string
	Color  Color
	Dash   string // as stroke-dasharray has it; empty is a whole line
	Points []Point
}

// Point is a value. Whiskers go from Low to High, if these differ. A point with a Text has a mark that shows it when it is
// pointed at. What a logarithmic axis cannot show is left out.
type Point struct {
	X, Y, Low, High float64
	Text            string
}

// Color is a colour of the stylesheet, which has a shade for each theme.
type Color string

// The colours.
const (
	Blue   Color = "blue"
	Red    Color = "red"
	Purple Color = "purple"
	Green  Color = "green"
	Amber  Color = "amber"
	Grey   Color = "grey"
	Teal   Color = "teal"
	Pink   Color = "pink"
	Brown  Color = "brown"
)

// StrategyColor gives a strategy the same colour in all reports.
func StrategyColor(strategy string) Color {
	switch strategy {
	case "local":
		return Amber
	case "postgres":
		return Blue
	case "redis":
		return Red
	case "redlock":
		return Purple
	case "zookeeper":
		return Green
	}
	return Grey
}

// The plot's place within a drawing of 480 by 320, as parts.html has it.
const plotLeft, plotRight, plotTop, plotBottom = 66, 470, 12, 268

// scale is an axis that knows where its values lie.
type scale struct {
	Axis
	from, to float64 // in the drawing
}

func newScale(a Axis, values []float64, from, to float64) scale {
	if a.Log {
		values = slices.DeleteFunc(values, func(v float64) bool { return v <= 0 })
	}
	if a.Min == a.Max && len(values) > 0 {
		a.Min, a.Max = slices.Min(values), slices.Max(values)
		if !a.Log {
			a.Min = min(a.Min, 0)
		}
	}
	if a.Log {
		a.Min = math.Pow(10, math.Floor(math.Log10(a.Min)))
		a.Max = math.Pow(10, math.Ceil(math.Log10(a.Max)))
	}
	if a.Min >= a.Max { // nothing but zeros, or nothing at all
		a.Min, a.Max = 1, 10
		if !a.Log {
			a.Min = 0
		}
	}
	if a.Ticks == nil {
		a.Ticks = a.ticks()
	}
	return scale{a, from, to}
}

func (a Axis) ticks() (ticks []Tick) {
	if a.Log {
		for v := a.Min; v <= a.Max*1.001; v *= 10 {
			ticks = append(ticks, Tick{v, Number(v)})
		}
		return ticks
	}
	step := math.Pow(10, math.Floor(math.Log10((a.Max-a.Min)/4)))
	for _, factor := range []float64{2, 2.5, 2} { // 2, 5, 10 times as much
		if (a.Max-a.Min)/step > 6 {
			step *= factor
		}
	}
	for i := math.Ceil(a.Min / step); i*step <= a.Max*1.001; i++ {
		ticks = append(ticks, Tick{i * step, Number(i * step)})
	}
	return ticks
}

// place is where a value lies in the drawing; false: nowhere.
func (s scale) place(v float64) (at float64, ok bool) {
	low, high := s.Min, s.Max
	if s.Log {
		if v <= 0 {
			return 0, false
		}
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	return math.Round((s.from+(v-low)/(high-low)*(s.to-s.from))*10) / 10, true
}

func (s scale) placed() (ticks []Tick) {
	for _, t := range s.Ticks {
		if at, ok := s.place(t.At); ok {
			ticks = append(ticks, Tick{at, t.Text})
		}
	}
	return ticks
}

// drawing is a chart in the units of the drawing.
type drawing struct {
	X, Y   []Tick
	Series []drawn
}

type drawn struct {
	Series
	Path     string
	Whiskers string
	Marks    []Point
}

// Draw is for the template.
func (c Chart) Draw() drawing {
	var xs, ys []float64
	stacks := map[float64]float64{}
	for _, s := range c.Series {
		for _, p := range s.Points {
			xs = append(xs, p.X)
			if stacks[p.X] += p.Y; c.Bars {
				ys = append(ys, stacks[p.X])
				continue
			}
			ys = append(ys, p.Y)
			if p.Low != p.High {
				ys = append(ys, p.Low, p.High)
			}
		}
	}
	x, y := newScale(c.X, xs, plotLeft, plotRight), newScale(c.Y, ys, plotBottom, plotTop)
	d := drawing{X: x.placed(), Y: y.placed()}
	if c.Bars {
		d.Series = c.bars(x, y, slices.Sorted(maps.Keys(stacks)))
	} else {
		for _, s := range c.Series {
			d.Series = append(d.Series, s.line(x, y))
		}
	}
	return d
}

func (s Series) line(x, y scale) drawn {
	d := drawn{Series: s}
	var path, whiskers strings.Builder
	command := 'M'
	for _, p := range s.Points {
		px, okX := x.place(p.X)
		py, okY := y.place(p.Y)
		if !okX || !okY {
			continue
		}
		fmt.Fprintf(&path, "%c%g %g", command, px, py)
		command = 'L'
		low, okLow := y.place(p.Low)
		high, okHigh := y.place(p.High)
		if p.Low != p.High && okLow && okHigh {
			fmt.Fprintf(&whiskers, "M%g %gV%g", px, low, high)
		}
		if p.Text != "" {
			d.Marks = append(d.Marks, Point{X: px, Y: py, Text: p.Text})
		}
	}
	d.Path, d.Whiskers = path.String(), whiskers.String()
	return d
}

// bars are as wide as the columns are apart.
func (c Chart) bars(x, y scale, columns []float64) (all []drawn) {
	width := float64(plotRight - plotLeft)
	for i := 1; i < len(columns); i++ {
		left, _ := x.place(columns[i-1])
		right, _ := x.place(columns[i])
		width = min(width, right-left)
	}
	if len(columns) < 20 { // so many that gaps between them would be mistaken for silence
		width *= 0.7
	}
	stacks := map[float64]float64{}
	for _, s := range c.Series {
		var path strings.Builder
		d := drawn{Series: s}
		for _, p := range s.Points {
			px, okX := x.place(p.X)
			bottom, ok := y.place(stacks[p.X])
			if !ok {
				bottom = plotBottom // of a logarithmic axis
			}
			stacks[p.X] += p.Y
			top, okY := y.place(stacks[p.X])
			if !okX || !okY || p.Y == 0 {
				continue
			}
			fmt.Fprintf(&path, "M%g %gh%gV%gh%gz", round(px-width/2), bottom, round(width), top, -round(width))
		}
		d.Path = path.String()
		all = append(all, d)
	}
	return all
}

func round(v float64) float64 { return math.Round(v*10) / 10 }
