package zklock

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// named is a node as ZooKeeper names it: Java's %010d of a counter with 32 bits and a sign.
func named(n int32) string { return strings.Repeat("ab", idLength/2) + "-" + fmt.Sprintf("%010d", n) }

func TestNumbersOfNodes(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int32{
		named(0):             0,
		named(42):            42,
		named(math.MaxInt32): math.MaxInt32,
		named(math.MinInt32): math.MinInt32,
		named(-1):            -1,
	} {
		number, ours := sequence(name)
		require.True(t, ours, name)
		require.Equal(t, want, number, name)
	}
	id := strings.Repeat("ab", idLength/2)
	for _, foreign := range []string{
		"", "-", "junk", id, id + "-", id + "-12", id + "-abcdefghij", id + "-9999999999", id + "_0000000001",
		strings.Repeat("x", idLength) + "-0000000001", "_c_" + id + "-lock-0000000001",
	} {
		_, ours := sequence(foreign)
		require.False(t, ours, foreign)
	}
}

// The counter goes from its largest number to its smallest. Who comes after that stands behind.
func TestLineSurvivesTheWrap(t *testing.T) {
	t.Parallel()
	for _, first := range []int32{0, math.MaxInt32 - 5, math.MinInt32, -5} {
		var want []string
		for i := range int32(10) {
			want = append(want, named(first+i)) // wraps as Java's does
		}
		children := append([]string{"junk", "zz-0000000001"}, want...)
		rand.Shuffle(len(children), func(i, j int) { children[i], children[j] = children[j], children[i] })
		require.Equal(t, want, inLine(children))
	}
	require.Empty(t, inLine([]string{"junk"}))
}

// Whatever somebody has put beside the nodes of a queue, it stops nobody, and is not taken for one of them.
func FuzzChildren(f *testing.F) {
	f.Add(named(7))
	f.Add(named(math.MinInt32) + "x")
	f.Add(strings.Repeat("ab", idLength/2) + "-+000000001")
	f.Add(strings.Repeat("ab", idLength/2) + "-99999999999")
	f.Fuzz(func(t *testing.T, name string) {
		line := inLine([]string{named(5), name, named(6)})
		number, ours := sequence(name)
		switch {
		case ours && (len(line) != 3 || name[:idLength+1] != named(0)[:idLength+1] && withID([]string{name}, name[:idLength]) != name):
			t.Errorf("%q is one of ours, and is not found: %v", name, line)
		case ours && !strings.HasSuffix(name, fmt.Sprintf("-%010d", number)):
			t.Errorf("%q is not how ZooKeeper writes %d", name, number)
		case !ours && len(line) != 2:
			t.Errorf("%q is none of ours, and stands in the line: %v", name, line)
		}
	})
}
