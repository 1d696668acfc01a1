package experiments

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"fencepost/cmd/lab/internal/report"
)

// advice is when to choose a strategy. The figures in it are names of columns of which-one.
var advice = []struct{ strategy, text string }{
	{"postgres", "**Begin with `postgres`.** There is nothing else to run, nothing to expire and no clock to trust, and a crash is felt for {crash}: {rate} answers/s on one hot item, p99 {p99}. What it costs is a connection for each transaction that waits, so keep slow steps out of the lock."},
	{"redis", "**`redis`** when something slow has to happen under the lock, or when waiting must not hold connections: {rate} answers/s, p99 {p99}, and of all lock servers the one that answers fastest when nobody else wants the lock. After a crash the next one waits for the end of the term ({crash} here). Without its Redis it {one}; a failover may hand a lock out twice, and the fence sorts that out."},
	{"redlock", "**`redlock`** when the lock must survive the loss of a Redis without a failover: with one of five lost it {one}, with most of them lost it {most}. It is {rate} answers/s and p99 {p99}, and five servers to run. It needs the fence no less than one Redis does."},
	{"zookeeper", "**`zookeeper`** when there is an ensemble already, or when instances that wait should get the lock in the order in which they asked for it: {rate} answers/s, p99 {p99}. Without its leader it {one}, without a majority it {most}; a holder that has crashed is noticed when its session ends ({crash} here)."},
	{"local", "**`local` and `none`** are for seeing what goes wrong. Of 100 units, two instances have sold {sold} with a mutex in each."},
}

// WhichOne is the table of which-one and the advice that follows from it, as Markdown, with the date and the machine.
func (r *Report) WhichOne() (string, error) {
	i := slices.IndexFunc(r.Results, func(x Result) bool { return x.Name == whichOne.Name })
	switch {
	case i < 0:
		return "", fmt.Errorf("it has no result of %s", whichOne.Name)
	case !r.Results[i].OK:
		return "", errors.New(whichOne.Name + " has not come out as claimed, so nothing follows from it")
	}
	result := r.Results[i]
	var b strings.Builder
	table := report.Table{Header: result.Header}
	cells := map[string][]string{}
	for _, row := range result.Rows {
		if len(row) != len(whichOneHeader) {
			return "", fmt.Errorf("the table of %s is not what it is now: run it again", whichOne.Name)
		}
		cells[row[0]] = row
		table.Rows = append(table.Rows, append([]string{"`" + row[0] + "`"}, row[1:]...))
	}
	b.WriteString(table.Markdown())
	fmt.Fprintf(&b, "\nA hot item is one item and 64 buyers who want it at once from one instance; the term of leases and sessions was %s. Medians of three turns. Measured %s: %s\n",
		term, r.Taken.Format("2006-01-02"), r.Setting())
	b.WriteString("\n### Which one to choose\n")
	for _, a := range advice {
		row := cells[a.strategy]
		if row == nil {
			return "", fmt.Errorf("%s has not measured %s", whichOne.Name, a.strategy)
		}
		figures := strings.NewReplacer("{rate}", row[1], "{p99}", row[2], "{sold}", row[3], "{crash}", row[4], "{one}", row[5], "{most}", row[6])
		fmt.Fprintf(&b, "\n- %s", figures.Replace(a.text))
	}
	b.WriteString("\n")
	return b.String(), nil
}
