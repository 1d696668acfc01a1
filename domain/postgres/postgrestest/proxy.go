package postgrestest

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Proxy stands between clients and PostgreSQL. It knows just enough of the protocol to see the messages of the clients, and
// lets a test decide about each.
type Proxy struct {
	// URL is that of the database, by way of the proxy.
	URL      string
	listener net.Listener
	server   string
	judge    func(*Proxy, Request) Verdict
}

// Request is one message of a client.
type Request struct {
	// Statement is the text of the prepared statement that the message has executed; empty if it does something else.
	Statement string
}

// Verdict is what becomes of a message.
type Verdict int

const (
	Pass       Verdict = iota // on to the server
	HangUp                    // it does not reach the server: the connection is cut
	LoseAnswer                // it reaches the server; the connection is cut when the server has answered
)

// NewProxy starts a proxy to the database at rawURL. judge is called with every message before it is passed on, for each
// connection on a goroutine of its own: as long as it does not return, this message and what follows it stay where they are.
func NewProxy(tb testing.TB, rawURL string, judge func(*Proxy, Request) Verdict) *Proxy {
	tb.Helper()
	u, err := url.Parse(rawURL)
	require.NoError(tb, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	p := &Proxy{listener: listener, server: u.Host, judge: judge}
	u.Host = listener.Addr().String()
	p.URL = u.String()
	var group sync.WaitGroup
	group.Go(func() { p.accept(&group) })
	tb.Cleanup(func() {
		p.Refuse()
		group.Wait()
	})
	return p
}

// Refuse has the proxy take no more connections.
func (p *Proxy) Refuse() { _ = p.listener.Close() }

func (p *Proxy) accept(group *sync.WaitGroup) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		var answerIsLost atomic.Bool
		hangUp := func() { _ = client.Close(); _ = server.Close() }
		group.Go(func() {
			defer hangUp()
			p.requests(server, client, &answerIsLost)
		})
		group.Go(func() {
			defer hangUp()
			answers(client, server, &answerIsLost)
		})
	}
}

// requests passes on what the client sends, message by message.
func (p *Proxy) requests(server io.Writer, client io.Reader, answerIsLost *atomic.Bool) {
	prepared := map[string]string{} // statements by their names
	header := 4                     // the first message has no type, only a length
	for {
		head := make([]byte, header)
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[header-4:])-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		var r Request
		if header == 5 {
			words := strings.SplitN(string(body), "\x00", 3)
			switch head[0] {
			case 'P': // Parse: the statement's name, its text
				prepared[words[0]] = words[1]
			case 'B': // Bind: the portal's name, the statement's
				r.Statement = prepared[words[1]]
			}
		}
		switch p.judge(p, r) {
		case HangUp:
			return
		case LoseAnswer:
			answerIsLost.Store(true)
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
		header = 5
	}
}

// answers passes on what the server sends. When an answer is to be lost, it hangs up as soon as the answer is there: the
// server, which answers a pipeline as a whole, has done by then what it was asked for.
func answers(client io.Writer, server io.Reader, answerIsLost *atomic.Bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil || answerIsLost.Load() {
			return
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}
