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
	judge    func(*Proxy, Request) Verdict

	mu     sync.Mutex
	routes []string // addresses of servers: where the next sessions take place, and last all that follow
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
	CutOff                    // it reaches the server with the rest of its batch; the connection is cut without waiting for the answer
)

// NewProxy starts a proxy to the database at rawURL. judge is called with every message but the first before it is passed on, for each
// connection on a goroutine of its own: as long as it does not return, this message and what follows it stay where they are.
func NewProxy(tb testing.TB, rawURL string, judge func(*Proxy, Request) Verdict) *Proxy {
	tb.Helper()
	u, err := url.Parse(rawURL)
	require.NoError(tb, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	p := &Proxy{listener: listener, routes: []string{u.Host}, judge: judge}
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

// Route has the next sessions take place on these servers, one each, and all that follow on the last.
func (p *Proxy) Route(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.routes = addresses
}

// route is where a client that begins with the message is led to. A request to cancel, which has a connection of its own, is no
// session.
func (p *Proxy) route(first []byte) (address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	address = p.routes[0]
	if len(p.routes) > 1 && binary.BigEndian.Uint32(first[4:]) != cancelRequest {
		p.routes = p.routes[1:]
	}
	return address
}

const cancelRequest = 80877102 // in the place of the version of the protocol

func (p *Proxy) accept(group *sync.WaitGroup) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		group.Go(func() { p.connect(group, client) })
	}
}

func (p *Proxy) connect(group *sync.WaitGroup, client net.Conn) {
	defer client.Close()
	first, err := message(client, 4) // it has no type, only a length
	if err != nil {
		return
	}
	server, err := net.Dial("tcp", p.route(first))
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(first); err != nil {
		return
	}
	var answerIsLost atomic.Bool
	group.Go(func() {
		defer client.Close()
		defer server.Close()
		answers(client, server, &answerIsLost)
	})
	p.requests(server, client, &answerIsLost)
}

// message reads one message, whose head has that many bytes and ends with the length.
func message(client io.Reader, head int) ([]byte, error) {
	text := make([]byte, head)
	if _, err := io.ReadFull(client, text); err != nil {
		return nil, err
	}
	text = append(text, make([]byte, binary.BigEndian.Uint32(text[head-4:])-4)...)
	_, err := io.ReadFull(client, text[head:])
	return text, err
}

// requests passes on what the client sends, message by message.
func (p *Proxy) requests(server io.Writer, client io.Reader, answerIsLost *atomic.Bool) {
	prepared := map[string]string{} // statements by their names
	cutOff := false
	for {
		text, err := message(client, 5)
		if err != nil {
			return
		}
		var r Request
		words := strings.SplitN(string(text[5:]), "\x00", 3)
		switch text[0] {
		case 'P': // Parse: the statement's name, its text
			prepared[words[0]] = words[1]
		case 'B': // Bind: the portal's name, the statement's
			r.Statement = prepared[words[1]]
		}
		switch p.judge(p, r) {
		case HangUp:
			return
		case LoseAnswer:
			answerIsLost.Store(true)
		case CutOff:
			cutOff = true
		}
		if _, err := server.Write(text); err != nil {
			return
		}
		if cutOff && text[0] == 'S' { // Sync: the end of a batch
			return
		}
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
