// Package pgwire is a proxy between clients and PostgreSQL that can strike at a chosen message: hold it back, lose it, or
// lose its answer. Tests and the laboratory cause with it what a network does at the worst moment.
//
// It promises to change nothing of what it passes on, and knows just enough of the protocol to see the clients' messages.
package pgwire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// Proxy listens on a free loopback port.
type Proxy struct {
	// URL is that of the database, by way of the proxy.
	URL      string
	listener net.Listener
	server   string
	judge    Judge
	serving  sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	connections map[*connection]bool
}

// Judge decides about each message. It is called before the message is passed on, for each connection on a goroutine of its
// own: as long as it does not return, this message and what follows it stay where they are.
type Judge func(*Proxy, Request) Verdict

// Request is one message of a client.
type Request struct {
	// Statement is the text of the prepared statement that the message has executed; empty if it does something else.
	Statement string
	// Answered is closed when the client has got what the server sends next.
	Answered func() <-chan struct{}

	body []byte
}

// Mentions tells whether a parameter of the statement contains the text.
func (r Request) Mentions(text string) bool { return bytes.Contains(r.body, []byte(text)) }

// Verdict is what becomes of a message.
type Verdict int

const (
	Pass       Verdict = iota // on to the server
	HangUp                    // it does not reach the server: the connection is cut
	LoseAnswer                // it reaches the server; the connection is cut when the server has answered
)

// New starts a proxy to the database at rawURL.
func New(rawURL string, judge Judge) (*Proxy, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("the database's address is not a URL") // the error would repeat its password
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, server: u.Host, judge: judge, connections: map[*connection]bool{}}
	u.Host = listener.Addr().String()
	p.URL = u.String()
	p.serving.Go(p.accept)
	return p, nil
}

// Refuse has the proxy take no more connections.
func (p *Proxy) Refuse() { _ = p.listener.Close() }

// Close takes no more connections and cuts those that there are. What is judged at the moment is waited for.
func (p *Proxy) Close() {
	p.Refuse()
	p.mu.Lock()
	p.closed = true
	for c := range p.connections {
		c.hangUp()
	}
	p.mu.Unlock()
	p.serving.Wait()
}

func (p *Proxy) accept() {
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
		c := &connection{proxy: p, client: client, server: server}
		if !p.keep(c) {
			c.hangUp()
			return
		}
		p.serving.Go(func() {
			defer p.forget(c)
			c.requests()
		})
		p.serving.Go(c.answers)
	}
}

// keep is false if the proxy has been closed meanwhile.
func (p *Proxy) keep(c *connection) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connections[c] = true
	return !p.closed
}

func (p *Proxy) forget(c *connection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.connections, c)
}

type connection struct {
	proxy          *Proxy
	client, server net.Conn
	answerIsLost   atomic.Bool

	mu       sync.Mutex
	answered chan struct{} // closed with the next answer; nil: nobody waits for it
}

func (c *connection) hangUp() { _ = c.client.Close(); _ = c.server.Close() }

// requests passes on what the client sends, message by message.
func (c *connection) requests() {
	defer c.hangUp()
	prepared := map[string]string{} // statements by their names
	header := 4                     // the first message has no type, only a length
	for {
		head := make([]byte, header)
		if _, err := io.ReadFull(c.client, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[header-4:])-4)
		if _, err := io.ReadFull(c.client, body); err != nil {
			return
		}
		r := Request{Answered: c.nextAnswer, body: body}
		if header == 5 {
			words := strings.SplitN(string(body), "\x00", 3)
			switch head[0] {
			case 'P': // Parse: the statement's name, its text
				prepared[words[0]] = words[1]
			case 'B': // Bind: the portal's name, the statement's
				r.Statement = prepared[words[1]]
			}
		}
		switch c.proxy.judge(c.proxy, r) {
		case HangUp:
			return
		case LoseAnswer:
			c.answerIsLost.Store(true)
		}
		if _, err := c.server.Write(append(head, body...)); err != nil {
			return
		}
		header = 5
	}
}

// answers passes on what the server sends. When an answer is to be lost, it hangs up as soon as the answer is there: the
// server, which answers a pipeline as a whole, has done by then what it was asked for.
func (c *connection) answers() {
	defer c.passedOn()
	defer c.hangUp()
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buffer)
		if err != nil || c.answerIsLost.Load() {
			return
		}
		if _, err := c.client.Write(buffer[:n]); err != nil {
			return
		}
		c.passedOn()
	}
}

func (c *connection) nextAnswer() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered == nil {
		c.answered = make(chan struct{})
	}
	return c.answered
}

func (c *connection) passedOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered != nil {
		close(c.answered)
		c.answered = nil
	}
}
