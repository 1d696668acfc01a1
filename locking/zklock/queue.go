package zklock

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A node of a queue is named by its grant's id and the number that ZooKeeper appends:
// 5ae0d2c1f4b74c0e8a0d0c1b2a394857-0000000042. The id comes first, so that the node can be found when the reply that would
// have told the number was lost.
const idLength = 32 // a UUID in hexadecimal

// sequence reads the number of a node's name. Other children are not ours: somebody has put them there, and they must not
// stop the queue.
func sequence(name string) (number int32, ours bool) {
	if len(name) < idLength+1+10 || name[idLength] != '-' {
		return 0, false
	}
	if _, err := hex.DecodeString(name[:idLength]); err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(name[idLength+1:], 10, 32)
	return int32(n), err == nil && name[idLength+1:] == fmt.Sprintf("%010d", n) // one way to write a number, not several
}

// inLine returns those of the children that are nodes of ours, the holder first.
//
// The number is the parent's counter of creations, 32 bits with a sign: after 2147483647 comes -2147483648. So numbers are
// compared by their distance, which is right as long as fewer than 2^31 stand in one line.
func inLine(children []string) []string {
	type place struct {
		name   string
		number int32
	}
	var line []place
	for _, name := range children {
		if number, ours := sequence(name); ours {
			line = append(line, place{name, number})
		}
	}
	slices.SortFunc(line, func(a, b place) int { return cmp.Compare(a.number-b.number, 0) })
	names := make([]string, len(line))
	for i, p := range line {
		names[i] = p.name
	}
	return names
}

// withID finds the node that carries the grant's id; empty if there is none.
func withID(children []string, id string) string {
	for _, name := range children {
		if _, ours := sequence(name); ours && strings.HasPrefix(name, id) {
			return name
		}
	}
	return ""
}
