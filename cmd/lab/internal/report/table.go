package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Table is a part of a report for people to read.
type Table struct {
	Title  string
	Header []string
	Rows   [][]string
}

// Print writes the table for a terminal.
func (t Table) Print(out io.Writer) error {
	if t.Title != "" {
		fmt.Fprintln(out, t.Title)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// Markdown is the table without its title.
func (t Table) Markdown() string {
	var b strings.Builder
	for _, row := range append([][]string{t.Header, slices.Repeat([]string{"---"}, len(t.Header))}, t.Rows...) {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}

// Number writes three digits that count, and all of a whole number's: 0.912, 4.05, 31.8, 12,345.
func Number(v float64) string {
	if v != math.Trunc(v) && math.Abs(v) < 100 {
		decimals := 2
		if v != 0 {
			decimals = max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
		}
		text := strconv.FormatFloat(v, 'f', decimals, 64)
		if strings.Contains(text, ".") {
			text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
		}
		return text
	}
	text := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Plural counts with a noun: "1 client", "12,000 clients".
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return Number(float64(n)) + " " + noun + "s"
}
