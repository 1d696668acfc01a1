package report_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/cmd/lab/internal/report"
)

func TestNumber(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.004: "0.004", 0.9123: "0.912", 1: "1", 1.005: "1", 4.051: "4.05", 31.84: "31.8", 99.96: "100",
		123.4: "123", 1234.5: "1,235", 1e7: "10,000,000", -0.5: "-0.5", -123: "-123", -1234: "-1,234",
	} {
		assert.Equal(t, want, report.Number(v), "%v", v)
	}
	assert.Equal(t, "1 client", report.Plural(1, "client"))
	assert.Equal(t, "1,000 clients", report.Plural(1000, "client"))
}

func TestTable(t *testing.T) {
	t.Parallel()
	table := report.Table{Title: "Sales", Header: []string{"", "sold"}, Rows: [][]string{{"redis", "100"}, {"none", "1,000"}}}
	var out strings.Builder
	require.NoError(t, table.Print(&out))
	assert.Equal(t, "Sales\n       sold\nredis  100\nnone   1,000\n", out.String())
	assert.Equal(t, "|  | sold |\n| --- | --- |\n| redis | 100 |\n| none | 1,000 |\n", table.Markdown())
}

// render puts the parts on a page.
func render(t *testing.T, charts ...report.Chart) string {
	t.Helper()
	page := report.Page(`{{template "head" "<Test>"}}{{range .}}{{template "legend" .Series}}{{template "chart" .}}{{end}}</html>`)
	var out strings.Builder
	require.NoError(t, page.Execute(&out, charts))
	for _, outside := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "ZgotmplZ", "NaN", "Inf"} {
		assert.NotContains(t, out.String(), outside, "the page must open without a network")
	}
	return out.String()
}

// paths are the lines or bars of a page, without those of legends and grids.
func paths(page string) (found []string) {
	for _, match := range regexp.MustCompile(`class="(?:series|bars)" d="([^"]*)" stroke-dasharray="[^"]*"/?>(?:<path[^>]*>)?\s*(?:<circle|</g)`).FindAllStringSubmatch(page, -1) {
		found = append(found, match[1])
	}
	return found
}

func TestLines(t *testing.T) {
	t.Parallel()
	page := render(t, report.Chart{
		Title: "answers/s", XLabel: "clients", X: report.Columns([]string{"1", "16"}), Y: report.Axis{Log: true},
		Series: []report.Series{
			{Name: "<redis>", Color: report.Red, Dash: "5 4", Points: []report.Point{
				{X: 0, Y: 10, Low: 1, High: 100, Text: "ten"},
				{X: 1, Y: 0, Text: "nothing, which a logarithmic scale has no place for"},
				{X: 1, Y: 100, Text: "hundred"},
			}},
		},
	})
	assert.Equal(t, []string{"M167 140L369 12"}, paths(page), "from the middle of the scale to its top")
	assert.Contains(t, page, `d="M167 268V12"`, "the whisker")
	assert.Contains(t, page, "<title>ten</title>")
	assert.NotContains(t, page, "nothing")
	assert.Contains(t, page, ">clients</text>")
	assert.Contains(t, page, "&lt;redis&gt;")
	assert.Contains(t, page, "<h1>&lt;Test&gt;</h1>")
	assert.Equal(t, []string{"1", "10", "100", "1", "16"}, labels(page))
}

// labels are those of the ticks.
func labels(page string) (found []string) {
	for _, match := range regexp.MustCompile(`text-anchor="(?:end|middle)">([^<]+)</text>`).FindAllStringSubmatch(page, -1) {
		if match[1] != "clients" {
			found = append(found, match[1])
		}
	}
	return found
}

func TestBars(t *testing.T) {
	t.Parallel()
	page := render(t, report.Chart{
		Bars: true, X: report.Axis{Min: 0, Max: 2},
		Series: []report.Series{
			{Name: "sold", Points: []report.Point{{X: 0.5, Y: 30}, {X: 1.5, Y: 0}}},
			{Name: "refused", Points: []report.Point{{X: 0.5, Y: 10}, {X: 1.5, Y: 20}}},
		},
	})
	// 40 units are 256 high, and two columns 404 wide, of which 30 % are left between them.
	assert.Equal(t, []string{"M96.3 268h141.4V76h-141.4z", "M96.3 76h141.4V12h-141.4zM298.3 268h141.4V140h-141.4z"}, paths(page))
	assert.Equal(t, []string{"0", "10", "20", "30", "40", "0", "0.5", "1", "1.5", "2"}, labels(page))
}

// Whatever was measured, the page is made: all zeros, a single value, nothing at all.
func TestChartsOfLittle(t *testing.T) {
	t.Parallel()
	for _, points := range [][]report.Point{nil, {{}}, {{X: 3, Y: 7}}, {{X: 0, Y: 0}, {X: 1, Y: 0}}, {{X: -1, Y: -5}}} {
		for _, logarithmic := range []bool{false, true} {
			for _, bars := range []bool{false, true} {
				axis := report.Axis{Log: logarithmic}
				page := render(t, report.Chart{X: axis, Y: axis, Bars: bars, Series: []report.Series{{Points: points}}})
				assert.NotEmpty(t, labels(page))
			}
		}
	}
}

func TestScalesHaveRoundNumbers(t *testing.T) {
	t.Parallel()
	for most, want := range map[float64]string{
		0.07: "0 0.02 0.04 0.06", 3: "0 0.5 1 1.5 2 2.5 3", 9: "0 2 4 6 8", 47: "0 10 20 30 40", 1234: "0 500 1,000",
	} {
		page := render(t, report.Chart{
			X: report.Columns([]string{"clients"}), Series: []report.Series{{Points: []report.Point{{X: 0, Y: most}}}},
		})
		assert.Equal(t, want, strings.Join(labels(page), " "), "%v", most)
	}
}

func TestEveryColorIsDefined(t *testing.T) {
	t.Parallel()
	page := render(t)
	for _, color := range []report.Color{
		report.Blue, report.Red, report.Purple, report.Green, report.Amber, report.Grey, report.Teal, report.Pink, report.Brown,
	} {
		assert.Contains(t, page, "."+string(color)+" { --ink: light-dark(")
	}
	seen := map[report.Color]string{}
	for _, strategy := range []string{"none", "local", "postgres", "redis", "redlock", "zookeeper"} {
		color := report.StrategyColor(strategy)
		assert.Empty(t, seen[color], "%s has the colour of another", strategy)
		seen[color] = strategy
	}
}
