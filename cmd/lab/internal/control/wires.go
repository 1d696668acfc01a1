package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/domain/postgres/pgproxy"
)

// wires lead one instance to its servers.
type wires struct {
	postgres  *pgproxy.Proxy
	zookeeper *cable // nil without one

	mu      sync.Mutex
	waiting *message // nil: none is to be held back
}

// message is one that is to be held back on its way to PostgreSQL.
type message struct {
	statement, resource string
	skip                int           // so many like it are let through before
	sent                chan struct{} // closed when it is on its way
	letGo               chan struct{} // closed when it may go on
	answered            <-chan struct{}
}

// messages are the kinds that can be held back. A section with a slow step presents twice, before and after it: the second
// presentation is the one that tells whether what it has read still holds.
var messages = map[string]message{
	"write":        {statement: "UPDATE items"},
	"presentation": {statement: "SELECT present", skip: 1},
}

func newWires(lab *servers.Lab) (*wires, error) {
	w := &wires{}
	var err error
	if w.postgres, err = pgproxy.Start(databases.Of(lab).Service, pgproxy.Watch{Judge: w.judge}); err != nil {
		return nil, err
	}
	// An ensemble has its own ways to keep a client connected; it is left alone.
	if address := lab.Variable("FENCEPOST_ZOOKEEPER_SERVERS"); address != "" && !strings.Contains(address, ",") {
		if w.zookeeper, err = newCable(address); err != nil {
			w.postgres.Close()
			return nil, err
		}
	}
	return w, nil
}

func (w *wires) env() []string {
	env := []string{"FENCEPOST_DATABASE_URL=" + w.postgres.URL}
	if w.zookeeper != nil {
		env = append(env, "FENCEPOST_ZOOKEEPER_SERVERS="+w.zookeeper.listener.Addr().String())
	}
	return env
}

func (w *wires) close() {
	w.letGo(context.Background())
	w.postgres.Cut()
	w.postgres.Close()
	if w.zookeeper != nil {
		w.zookeeper.close()
	}
}

func (w *wires) hold(kind, resource string) error {
	m, known := messages[kind]
	if !known {
		return fmt.Errorf("message must be write or presentation")
	}
	m.resource, m.sent, m.letGo = resource, make(chan struct{}), make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting != nil {
		close(w.waiting.letGo)
	}
	w.waiting = &m
	return nil
}

func (w *wires) judge(_ *pgproxy.Proxy, r pgproxy.Request) pgproxy.Verdict {
	w.mu.Lock()
	m := w.waiting
	if m == nil || m.answered != nil || !strings.HasPrefix(strings.TrimSpace(r.Statement), m.statement) || !r.Mentions(m.resource) {
		w.mu.Unlock()
		return pgproxy.Pass
	}
	if m.skip > 0 {
		m.skip--
		w.mu.Unlock()
		return pgproxy.Pass
	}
	m.answered = r.Answered()
	w.mu.Unlock()
	close(m.sent)
	<-m.letGo
	return pgproxy.Pass
}

// caught returns when the message is on its way that was to be held back, and its statement; at once if there is none.
func (w *wires) caught(ctx context.Context) (statement string, err error) {
	w.mu.Lock()
	m := w.waiting
	w.mu.Unlock()
	if m == nil {
		return "", nil
	}
	select {
	case <-m.sent:
		return m.statement + "…, " + m.resource, nil
	case <-ctx.Done():
		w.letGo(ctx)
		return "", fmt.Errorf("the instance has sent no such message: %w", context.Cause(ctx))
	}
}

// letGo lets the message go on, if one was held back, and returns when its answer is with the client.
func (w *wires) letGo(ctx context.Context) bool {
	w.mu.Lock()
	m := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	if m == nil {
		return false
	}
	close(m.letGo)
	if m.answered == nil {
		return false
	}
	select {
	case <-m.answered:
	case <-ctx.Done():
	}
	return true
}

// cable passes on whatever it is given, until it is cut.
type cable struct {
	listener net.Listener
	server   string
	serving  sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	ends  map[net.Conn]bool
}

func newCable(server string) (*cable, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &cable{listener: listener, server: server, ends: map[net.Conn]bool{}}
	c.serving.Go(c.accept)
	return c, nil
}

func (c *cable) accept() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", c.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		c.mu.Lock()
		if c.isCut {
			_, _ = client.Close(), server.Close()
		} else {
			c.ends[client], c.ends[server] = true, true
			c.serving.Go(func() { c.pass(client, server) })
			c.serving.Go(func() { c.pass(server, client) })
		}
		c.mu.Unlock()
	}
}

func (c *cable) pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_, _ = to.Close(), from.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ends, to)
	delete(c.ends, from)
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = true
	for end := range c.ends {
		_ = end.Close()
	}
}

func (c *cable) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = false
}

func (c *cable) close() {
	_ = c.listener.Close()
	c.cut()
	c.serving.Wait()
}
