package zklock

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// played is a connection whose server says what it is told to, in pieces of any size.
type played struct {
	net.Conn
	io.Reader
	sent bytes.Buffer
}

func (p *played) Read(b []byte) (int, error)  { return p.Reader.Read(b) }
func (p *played) Write(b []byte) (int, error) { return p.sent.Write(b) }

// Whatever a server answers, in whatever pieces, the library gets it unchanged; and a session is heard of only when the whole
// beginning of an answer has come. A server that closes without an answer counts as one that has refused.
func FuzzHandshake(f *testing.F) {
	answer := binary.BigEndian.AppendUint32(nil, 36)
	answer = binary.BigEndian.AppendUint32(answer, 0)
	answer = binary.BigEndian.AppendUint32(answer, 4000)
	answer = binary.BigEndian.AppendUint64(answer, 1<<63|7)
	f.Add(answer, false)
	f.Add(append(answer, make([]byte, 20)...), true)
	f.Add(answer[:answerEnd-1], true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, answer []byte, piecemeal bool) {
		reader := io.Reader(bytes.NewReader(answer))
		if piecemeal {
			reader = iotest.OneByteReader(reader)
		}
		c := newClient([]string{"one"}, time.Second, "", slog.New(slog.DiscardHandler))
		defer c.end()
		h := &hosts{client: c, servers: c.servers, tried: 1}
		got, err := io.ReadAll(&handshake{Conn: &played{Reader: reader}, hosts: h})
		require.NoError(t, err)
		require.Equal(t, answer, got)

		var want session
		wantTried, wantRefused := 1, 0
		switch {
		case len(answer) >= answerEnd:
			want.timeout = time.Duration(binary.BigEndian.Uint32(answer[8:12])) * time.Millisecond
			want.id = int64(binary.BigEndian.Uint64(answer[12:20]))
			wantTried = 0
		case len(answer) == 0:
			wantRefused = 1
		}
		require.Equal(t, want, c.offered)
		require.Equal(t, []int{wantTried, wantRefused}, []int{h.tried, h.refused})
	})
}

// Of what the library says first, only the last transaction that it has seen is hidden, and only from an ensemble that has
// refused as a whole.
func FuzzGreeting(f *testing.F) {
	f.Add([]byte("0123456789abcdef0123456789abcdef"), 0)
	f.Add([]byte("0123456789abcdef0123456789abcdef"), 1)
	f.Add([]byte("0123456789abcde"), 1)
	f.Fuzz(func(t *testing.T, request []byte, refused int) {
		before := bytes.Clone(request)
		conn := &played{}
		h := &handshake{Conn: conn, hosts: &hosts{servers: []string{"one"}, refused: refused}}
		n, err := h.Write(request)
		require.NoError(t, err)
		require.Equal(t, len(request), n)
		require.Equal(t, before, request, "a writer may not change what it is given")

		want := bytes.Clone(request)
		if refused >= 1 && len(want) >= 16 {
			clear(want[8:16])
		}
		require.Equal(t, string(want), conn.sent.String())
		_, _ = h.Write(request) // what comes later is none of ours
		require.Equal(t, string(want)+string(request), conn.sent.String())
	})
}

// Answers do not come before the library has told of its watches, where it might.
func TestAnswersComeAfterTheWatches(t *testing.T) {
	const known, other = 7, 8
	request := func(operation uint32) []byte {
		return binary.BigEndian.AppendUint32(make([]byte, requestOperation), operation)
	}
	const get = 4
	for name, story := range map[string]struct {
		session uint64
		before  []uint32 // sent before the answer comes
		waits   bool
	}{
		"a new session":      {other, []uint32{get}, false},
		"credentials, pings": {known, []uint32{opSetAuth, opPing}, false},
		"watches, a request": {known, []uint32{opSetWatches, opSetWatches, get}, false},
		"a request":          {known, []uint32{opSetAuth, get}, true},
	} {
		for _, told := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				greeting := make([]byte, answerEnd)
				binary.BigEndian.PutUint64(greeting[answerSession:], story.session)
				c := newClient([]string{"one"}, time.Second, "", slog.New(slog.DiscardHandler))
				defer c.end()
				c.session.id = known
				h := &handshake{
					Conn:      &played{Reader: io.MultiReader(bytes.NewReader(greeting), bytes.NewReader([]byte("answer")), bytes.NewReader([]byte("next")))},
					hosts:     &hosts{client: c, servers: c.servers},
					rewatched: make(chan struct{}, 1),
				}
				send := func(p []byte) {
					_, err := h.Write(p)
					require.NoError(t, err)
				}
				read := func() string {
					p := make([]byte, 100)
					n, err := h.Read(p)
					require.NoError(t, err)
					return string(p[:n])
				}
				send(make([]byte, 44))
				require.Equal(t, string(greeting), read())

				began := time.Now()
				for _, operation := range story.before {
					send(request(operation))
				}
				got := make(chan string, 1)
				go func() { got <- read() }()
				synctest.Wait()
				require.Equal(t, story.waits, len(got) == 0, name)
				if told {
					send(request(opSetWatches))
				}
				require.Equal(t, "answer", <-got)
				want := time.Duration(0)
				if story.waits && !told {
					want = rewatchTime // there was nothing to tell
				}
				require.Equal(t, want, time.Since(began), name)
				require.Equal(t, "next", read())
				require.Equal(t, want, time.Since(began), name)
			})
		}
	}
}
