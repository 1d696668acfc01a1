package experiments

import (
	"fmt"
	"time"
)

// claims and controls note what was to be seen, and what was seen.
func (r *Run) claims(ok bool, want, saw string, args ...any) { r.find(Claim, ok, want, saw, args...) }

func (r *Run) controls(ok bool, want, saw string, args ...any) {
	r.find(Control, ok, want, saw, args...)
}

func (r *Run) find(of Part, ok bool, want, saw string, args ...any) {
	r.Findings = append(r.Findings, Finding{Of: of, Want: want, Saw: fmt.Sprintf(saw, args...), OK: ok})
}

func (r *Run) row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = fmt.Sprint(cell)
	}
	r.Rows = append(r.Rows, row)
}

// timeline begins a picture of what happens when.
func (r *Run) timeline(title string, args ...any) *Timeline {
	t := &Timeline{Title: fmt.Sprintf(title, args...), began: r.began}
	r.Timelines = append(r.Timelines, t)
	return t
}

func (t *Timeline) at(when time.Time, kind Kind, who, what string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Events = append(t.Events, Event{t.since(when), who, fmt.Sprintf(what, args...), kind})
}

// span notes how long somebody has believed that he has the lock. An empty token is left out.
func (t *Timeline) span(from, to time.Time, who, token string) {
	t.Spans = append(t.Spans, Span{t.since(from), t.since(to), who, token})
}

func (t *Timeline) since(when time.Time) float64 {
	return float64(when.Sub(t.began).Microseconds()) / 1000
}

// lasted is a time for people to read.
func lasted(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// bar notes a value for the picture.
func (r *Run) bar(label, part string, value float64) {
	r.Bars = append(r.Bars, Bar{label, value, part})
}
