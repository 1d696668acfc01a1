package experiments

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestVerdicts(t *testing.T) {
	t.Parallel()
	yes, no := func(of Part) Finding { return Finding{Of: of, OK: true} }, func(of Part) Finding { return Finding{Of: of} }
	for name, test := range map[string]struct {
		control  string
		findings []Finding
		err      error
		verdict  string
	}{
		"all is seen":             {"c", []Finding{yes(Claim), yes(Control)}, nil, "confirmed"},
		"a claim without control": {"", []Finding{yes(Claim)}, nil, "confirmed"},
		"one of two claims":       {"c", []Finding{yes(Claim), no(Claim), yes(Control)}, nil, "NOT CONFIRMED"},
		"the control holds":       {"c", []Finding{yes(Claim), no(Control)}, nil, "THE CONTROL DOES NOT FAIL AS IT SHOULD"},
		"no control was run":      {"c", []Finding{yes(Claim)}, nil, "NO VERDICT"},
		"nothing was seen":        {"", nil, nil, "NO VERDICT"},
		"broken off":              {"c", []Finding{yes(Claim), yes(Control)}, errors.New("cut"), "NO VERDICT"},
	} {
		r := Result{Control: test.control, Findings: test.findings}
		r.judge(test.err, time.Second)
		assert.Equal(t, test.verdict, r.Verdict(), name)
		assert.Equal(t, test.verdict == "confirmed", r.OK, name)
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	report := &Report{CPUs: 2, Servers: []string{"postgres 15"}, Results: []Result{{
		Name: "x", Claim: "<claim>", OK: true,
		Findings: []Finding{{Of: Claim, Want: "all", Saw: "<all>", OK: true}, {Of: Control, Want: "none", Saw: "some"}},
		Header:   []string{"lock"}, Rows: [][]string{{"redis"}},
		Timelines: []*Timeline{{
			Title: "story", Spans: []Span{{From: 100, To: 150, Who: "a"}},
			Events: []Event{{200, "a", "later", Refuse}, {100, "a", "first", Step}, {101, "a", "next", Fault}, {199, "b", "other", Accept}},
		}},
		Bars: []Bar{{Label: "redis", Value: 2}, {Label: "zookeeper", Value: 4, Part: "p99"}}, BarUnit: "ms",
	}, {Name: "empty"}}}
	var page strings.Builder
	require.NoError(t, report.WriteHTML(&page))
	for _, outside := range []string{"http:", "https:", "src=", "url(", "@import", "ZgotmplZ", "NaN", "Inf"} {
		assert.NotContains(t, page.String(), outside, "the page must open without a network")
	}
	assert.Contains(t, page.String(), "&lt;claim&gt;")
	assert.Contains(t, page.String(), "&lt;all&gt;")
	assert.Contains(t, page.String(), `<div class="bar red">redis<span><i style="width:50%"></i>2</span></div>`)
	assert.Contains(t, page.String(), `<div class="bar green">zookeeper, p99<span><i style="width:100%"></i>4</span></div>`)

	p := report.Results[0].Timelines[0].Picture()
	require.Len(t, p.Lanes, 2)
	assert.Equal(t, []stretch{{From: 0, Width: 50}}, p.Lanes[0].Spans)
	var places []float64
	for _, m := range p.Lanes[0].Marks {
		places = append(places, m.At)
	}
	assert.Equal(t, []float64{0, closest, 100}, places, "two that happen at once are seen beside each other")
	assert.Equal(t, "first", p.Events[0].What)
	assert.Equal(t, "0.100 s", p.Events[3].Time())
}

func TestNamesOfExperiments(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, e := range All {
		assert.False(t, seen[e.Name], e.Name)
		seen[e.Name] = true
		found, err := Find(e.Name)
		require.NoError(t, err)
		assert.Equal(t, e.Claim, found.Claim)
		assert.NotEmpty(t, e.Claim, e.Name)
	}
}

func TestWhichOne(t *testing.T) {
	t.Parallel()
	result := Result{Name: whichOne.Name, OK: true, Header: whichOneHeader}
	for _, strategy := range []string{"local", "postgres", "redis", "redlock", "zookeeper"} {
		result.Rows = append(result.Rows, []string{strategy, strategy + "/s", "9 ms", "123", "1.9 s", "goes on", "refuses", "CP"})
	}
	text, err := (&Report{CPUs: 2, Results: []Result{{Name: "other"}, result}}).WhichOne()
	require.NoError(t, err)
	assert.Contains(t, text, "| `redis` | redis/s | 9 ms | 123 | 1.9 s | goes on | refuses | CP |\n")
	assert.Contains(t, text, "2 CPUs")
	assert.Contains(t, text, "zookeeper/s answers/s, p99 9 ms. Without its leader it goes on, without a majority it refuses;")
	assert.NotContains(t, text, "{")

	for name, results := range map[string][]Result{
		"no result":   {{Name: "other", OK: true}},
		"has not":     {{Name: whichOne.Name}},
		"run it":      {{Name: whichOne.Name, OK: true, Rows: [][]string{{"redis", "1"}}}},
		"measured po": {{Name: whichOne.Name, OK: true}},
	} {
		_, err := (&Report{Results: results}).WhichOne()
		require.ErrorContains(t, err, name)
	}
}
