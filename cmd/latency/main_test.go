package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"fencepost/cmd/internal/block"
	"fencepost/domain/postgres/postgrestest"
	"fencepost/locking/strategies"
)

// rows are the first cells of the lines of a table.
func rows(table string) (names []string) {
	for line := range strings.Lines(table) {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			names = append(names, name)
		}
	}
	return names
}

// The README has the table, with a row for every strategy that there is. Its figures are those of some machine.
func TestReadme(t *testing.T) {
	t.Parallel()
	table, err := block.Read("../../README.md", place)
	require.NoError(t, err)
	require.Equal(t, strategies.Names(), rows(table), "run 'make latency'")
}

// A few rounds on real servers: every strategy is measured, and whatever has a server has a round trip.
func TestMeasure(t *testing.T) {
	t.Parallel()
	db := postgrestest.New(t)
	const rounds = 3
	subjects, err := measure(t.Context(), rounds, servers{
		owner: db.OwnerURL, database: db.ServiceURL,
		redis: os.Getenv("FENCEPOST_REDIS_URL"), redlock: strings.Split(os.Getenv("FENCEPOST_REDLOCK_URLS"), ","),
		zookeeper: strings.Split(os.Getenv("FENCEPOST_ZOOKEEPER_SERVERS"), ","),
	})
	require.NoError(t, err)
	require.Equal(t, strategies.Names(), rows(render(subjects)))
	require.Len(t, figures(subjects), len(strategies.Names())-1, "all but none have a lock")
	for _, s := range subjects {
		switch s.name {
		case "none":
			require.Empty(t, s.held)
			require.Empty(t, s.trips)
		case "local":
			require.Len(t, s.held, rounds)
			require.Empty(t, s.trips)
		default:
			require.Len(t, s.held, rounds)
			require.Len(t, s.trips, rounds)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"a", "b"}, {"-json", "README.md"}, {"-rounds=0"}, {"-nonsense"}} {
		require.Error(t, run(t.Context(), args), "%v", args)
	}
}
