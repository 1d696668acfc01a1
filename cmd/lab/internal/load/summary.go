package load

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"fencepost/cmd/lab/internal/report"
)

// Summary is one race, or the same one under several strategies.
type Summary struct {
	Taken   time.Time `json:"taken"`
	Machine string    `json:"machine"` // that has made the load
	Runs    []Report  `json:"runs"`
}

// NewSummary is a summary of what was done just now on this machine.
func NewSummary(runs []Report) Summary {
	return Summary{
		Taken:   time.Now().UTC().Truncate(time.Second),
		Machine: fmt.Sprintf("%s, %s/%s", report.Plural(runtime.NumCPU(), "CPU"), runtime.GOOS, runtime.GOARCH),
		Runs:    runs,
	}
}

// Table has a row for each run.
func (s Summary) Table() report.Table {
	t := report.Table{Header: []string{
		"strategy", "fencing", "stock", "created", "oversold", "lost updates", "refused stale writes", "answers/s", "p50 ms", "p99 ms",
	}}
	number := func(n int64) string { return report.Number(float64(n)) }
	for _, r := range s.Runs {
		row := []string{r.Strategy, r.Fencing, "?", number(int64(r.Outcomes[created])), "?", "?", "?"}
		if r.Audited {
			row[2], row[4], row[5], row[6] = number(r.Limit), number(r.Oversold), number(r.Drift), number(r.Refused)
		}
		t.Rows = append(t.Rows, append(row, report.Number(r.PerSecond), report.Number(r.Latency.P50), report.Number(r.Latency.P99)))
	}
	return t
}

// Print writes the summary for a terminal.
func (s Summary) Print(out io.Writer) error {
	if len(s.Runs) == 1 {
		return s.Runs[0].print(out)
	}
	fmt.Fprintf(out, "%s\n\n", s.Runs[0].Race)
	if err := s.Table().Print(out); err != nil {
		return err
	}
	for _, r := range s.Runs {
		for _, note := range r.Notes {
			fmt.Fprintf(out, "\n%s: %s", r.Strategy, note)
		}
		if !r.OK && (r.Oversold == 0 && r.Drift == 0) {
			fmt.Fprintf(out, "\n%s: %s", r.Strategy, r.Verdict)
		}
	}
	_, err := fmt.Fprintln(out)
	return err
}

func (r Report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, lock %s, fencing %s\n%s\n", r.Resource, orDefault(r.Strategy), orDefault(r.Fencing), r.Race)
	fmt.Fprintf(out, "%s in %.2f s, %s answers/s\n", report.Plural(r.Requests, "attempt"), r.Seconds, report.Number(r.PerSecond))
	fmt.Fprintf(out, "latency p50 %s ms, p95 %s ms, p99 %s ms, max %s ms\n\n",
		report.Number(r.Latency.P50), report.Number(r.Latency.P95), report.Number(r.Latency.P99), report.Number(r.Latency.Max))
	if err := r.OutcomeTable().Print(out); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if text := r.Resent(); text != "" {
		fmt.Fprintln(out, text)
	}
	for _, note := range r.Notes {
		fmt.Fprintln(out, note)
	}
	if r.Refused > 0 {
		fmt.Fprintf(out, "the fence turned away %s\n", report.Plural(int(r.Refused), "stale write"))
	}
	_, err := fmt.Fprintln(out, r.Verdict)
	return err
}

// orDefault is for what only the audit would have told.
func orDefault(s string) string { return cmp.Or(s, "as configured") }

// OutcomeTable has a row for each code and a column for each instance.
func (r Report) OutcomeTable() report.Table {
	t := report.Table{Header: []string{"outcome", "all"}}
	for _, instance := range r.Instances {
		t.Header = append(t.Header, strings.TrimPrefix(strings.TrimPrefix(instance.URL, "http://"), "https://"))
	}
	for _, code := range r.Codes() {
		row := []string{code, report.Number(float64(r.Outcomes[code]))}
		for _, instance := range r.Instances {
			row = append(row, report.Number(float64(instance.Outcomes[code])))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// Resent tells what was sent again, and why.
func (r Report) Resent() string {
	if len(r.Retried) == 0 {
		return ""
	}
	var causes []string
	for _, code := range byFrequency(r.Retried) {
		causes = append(causes, fmt.Sprintf("%s %s", report.Number(float64(r.Retried[code])), code))
	}
	return fmt.Sprintf("sent again after %s; answered from what was done before: %s", strings.Join(causes, ", "), report.Number(float64(r.Replayed)))
}
