package experiments

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// link is the network between an instance and a server. When it is cut nothing arrives any more, in neither direction, and no
// connection is closed: nobody is told.
type link struct {
	address  string
	listener net.Listener
	isCut    atomic.Bool
	group    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// link makes one to the server.
func (r *Run) link(server string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{address: listener.Addr().String(), listener: listener, conns: map[net.Conn]bool{}}
	l.group.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			l.group.Go(func() { l.connect(client, server) })
		}
	})
	r.atEnd(func(context.Context) error {
		_ = listener.Close()
		l.heal()
		l.group.Wait()
		return nil
	})
	return l, nil
}

func (l *link) cut() { l.isCut.Store(true) }

// heal has the network work again. What was connected before is found to be broken.
func (l *link) heal() {
	l.isCut.Store(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		_ = conn.Close()
	}
}

func (l *link) connect(client net.Conn, server string) {
	conn, err := net.Dial("tcp", server)
	if err != nil {
		_ = client.Close()
		return
	}
	l.mu.Lock()
	l.conns[client], l.conns[conn] = true, true
	l.mu.Unlock()
	for from, to := range map[net.Conn]net.Conn{client: conn, conn: client} {
		l.group.Go(func() {
			_, _ = io.Copy(writer{l, to}, from)
			if !l.isCut.Load() { // or the other side would be told
				_ = client.Close()
				_ = conn.Close()
			}
		})
	}
}

// writer loses what is written while the link is cut.
type writer struct {
	link *link
	to   io.Writer
}

func (w writer) Write(p []byte) (int, error) {
	if w.link.isCut.Load() {
		return len(p), nil
	}
	return w.to.Write(p)
}
