package redislock

import (
	"errors"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// A lock counts as taken only by an answer of exactly the form that the scripts give. A proxy, another version of a script or
// a server that is none must not grant one.
func FuzzReplies(f *testing.F) {
	const asScripts, length = "it", 2
	f.Add(int64(1), "7", "", asScripts, length)
	f.Add(int64(0), "-1", "somebody", "itt", 3)
	f.Add(int64(1), "999999999999999999", "", asScripts, length)
	f.Add(int64(1), "9223372036854775808", "", asScripts, length)
	f.Add(int64(1), "7", "", "tt", 2)
	f.Add(int64(1), "7", "", "ii", 2)
	f.Add(int64(1), "", "", "ne", 2)
	f.Add(int64(2), "7", "", asScripts, length)
	f.Fuzz(func(t *testing.T, flag int64, number, rest, types string, length int) {
		reply := []any{} // types tells what RESP has made of each: integer, text, nil, error
		for i := range min(max(length, 0), len(types), 3) {
			text := []string{strconv.FormatInt(flag, 10), number, rest}[i]
			switch types[i] {
			case 'i':
				n, _ := strconv.ParseInt(text, 10, 64)
				reply = append(reply, n)
			case 'n':
				reply = append(reply, nil)
			case 'e':
				reply = append(reply, errors.New(text))
			default:
				reply = append(reply, text)
			}
		}

		won, n, others, err := parseReply(reply)
		if err != nil {
			require.False(t, won)
			return
		}
		require.Equal(t, won, reply[0] == any(int64(1)), "%v", reply)
		text, isText := reply[1].(string)
		require.True(t, isText, "%v", reply)
		want, err := strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
		require.Equal(t, want, n)
		require.Len(t, others, len(reply)-2)
	})
}
