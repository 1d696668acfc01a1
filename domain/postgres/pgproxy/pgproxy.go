// Package pgproxy stands between clients and PostgreSQL, so that a test or an experiment can strike at a chosen message: hold
// it back, lose it, or lose its answer.
//
// It knows just enough of the protocol to tell messages apart, and wants connections without TLS. It is for tests and for the
// laboratory.
package pgproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// Proxy is a running proxy to one database.
type Proxy struct {
	// URL is that of the database, by way of the proxy.
	URL      string
	listener net.Listener
	watch    Watch
	group    sync.WaitGroup

	mu     sync.Mutex
	routes []string               // addresses of servers: where the next sessions take place, and last all that follow
	cancel string                 // where requests to cancel go
	open   map[*connection]func() // and how to cut them
}

// connection is what the two directions of one share.
type connection struct {
	answerIsLost atomic.Bool

	mu       sync.Mutex
	answered chan struct{} // closed with the end of the next answer; nil: nobody waits for it
}

// Watch is what is done with the messages that pass.
type Watch struct {
	// Judge is called with every message of a client but the first before it is passed on, for each connection on a goroutine
	// of its own: as long as it does not return, this message and what follows it stay where they are.
	Judge func(*Proxy, Request) Verdict
	// Refused, if set, is called with every error that the server answers.
	Refused func(Error)
}

// Error is what the server says when it refuses something.
type Error struct{ SQLState, Detail string }

// Request is one message of a client.
type Request struct {
	// Statement is the text of the prepared statement that the message has executed; empty if it does something else.
	Statement string
	body      []byte
	from      *connection
}

// Answered is closed when the client has been sent the whole answer to the batch that the message belongs to, or has gone. It
// has to be called while the message is judged.
func (r Request) Answered() <-chan struct{} {
	r.from.mu.Lock()
	defer r.from.mu.Unlock()
	if r.from.answered == nil {
		r.from.answered = make(chan struct{})
	}
	return r.from.answered
}

func (c *connection) hasAnswered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered != nil {
		close(c.answered)
		c.answered = nil
	}
}

// Mentions tells whether the text is among the arguments of the statement.
func (r Request) Mentions(text string) bool { return bytes.Contains(r.body, []byte(text)) }

// Verdict is what becomes of a message.
type Verdict int

const (
	Pass       Verdict = iota // on to the server
	HangUp                    // it does not reach the server: the connection is cut
	LoseAnswer                // it reaches the server; the connection is cut when the server has answered
	CutOff                    // it reaches the server with the rest of its batch; the connection is cut before the answer
)

// Start starts a proxy to the database at rawURL.
func Start(rawURL string, watch Watch) (*Proxy, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("pgproxy: the database's URL cannot be read") // and there may be a password in it
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, routes: []string{u.Host}, cancel: u.Host, watch: watch, open: map[*connection]func(){}}
	u.Host = listener.Addr().String()
	p.URL = u.String()
	p.group.Go(p.accept)
	return p, nil
}

// Refuse has the proxy take no more connections.
func (p *Proxy) Refuse() { _ = p.listener.Close() }

// Close returns when all connections have ended, which is for their clients to do.
func (p *Proxy) Close() {
	p.Refuse()
	p.group.Wait()
}

// Cut breaks every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cut := range p.open {
		cut()
	}
}

// Route has the next sessions take place on these servers, one each, and all that follow on the last. A request to cancel, which
// has a connection of its own, is no session. It goes to the first: pgx sends one when a connection has broken, at any time, and
// by chance it would reach the server that has the statement and end it.
func (p *Proxy) Route(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.routes, p.cancel = addresses, addresses[0]
}

// route is where a client that begins with the message is led to.
func (p *Proxy) route(first []byte) (address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if binary.BigEndian.Uint32(first[4:]) == cancelRequest {
		return p.cancel
	}
	address = p.routes[0]
	if len(p.routes) > 1 {
		p.routes = p.routes[1:]
	}
	return address
}

const cancelRequest = 80877102 // in the place of the version of the protocol

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.group.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	defer client.Close()
	first, err := read(client, 4) // it has no type, only a length
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
	c := &connection{}
	p.keep(c, func() { _, _ = client.Close(), server.Close() })
	defer p.forget(c)
	p.group.Go(func() {
		defer c.hasAnswered()
		defer client.Close()
		defer server.Close()
		p.answers(client, server, c)
	})
	p.requests(server, client, c)
}

func (p *Proxy) keep(c *connection, cut func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = cut
}

func (p *Proxy) forget(c *connection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// requests passes on what the client sends, message by message.
func (p *Proxy) requests(server io.Writer, client io.Reader, c *connection) {
	prepared := map[string]string{} // statements by their names
	cutOff := false
	for {
		message, err := read(client, 5)
		if err != nil {
			return
		}
		r := Request{from: c}
		body := message[5:]
		words := strings.SplitN(string(body), "\x00", 3)
		switch message[0] {
		case 'P': // Parse: the statement's name, its text
			prepared[words[0]] = words[1]
		case 'B': // Bind: the portal's name, the statement's, the arguments
			r.Statement, r.body = prepared[words[1]], body
		}
		switch p.watch.Judge(p, r) {
		case HangUp:
			return
		case LoseAnswer:
			c.answerIsLost.Store(true)
		case CutOff:
			cutOff = true
		}
		if _, err := server.Write(message); err != nil {
			return
		}
		if cutOff && message[0] == 'S' { // Sync: the end of a batch
			return
		}
	}
}

// answers passes on what the server sends. When an answer is to be lost, it hangs up as soon as the answer is there: the
// server, which answers a pipeline as a whole, has done by then what it was asked for.
func (p *Proxy) answers(client io.Writer, server io.Reader, c *connection) {
	for {
		message, err := read(server, 5)
		if err != nil || c.answerIsLost.Load() {
			return
		}
		if message[0] == 'E' && p.watch.Refused != nil {
			p.watch.Refused(errorOf(message[5:]))
		}
		if _, err := client.Write(message); err != nil {
			return
		}
		if message[0] == 'Z' { // ReadyForQuery: the end of the answer
			c.hasAnswered()
		}
	}
}

// read returns one message with its header, at whose end is the length.
func read(from io.Reader, header int) ([]byte, error) {
	head := make([]byte, header)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[header-4:])-4)
	_, err := io.ReadFull(from, body)
	return append(head, body...), err
}

// errorOf reads the fields of an error: each is a letter and a text that ends with a zero.
func errorOf(fields []byte) (e Error) {
	for field := range bytes.SplitSeq(fields, []byte{0}) {
		if len(field) == 0 {
			continue
		}
		switch text := string(field[1:]); field[0] {
		case 'C':
			e.SQLState = text
		case 'D':
			e.Detail = text
		}
	}
	return e
}
