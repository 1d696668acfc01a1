package zklock_test

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy stands between a client and the server, and understands just enough of what they say to strike at a chosen moment.
// A message is its length and its body; a request's body begins with its number and its operation, an answer's with that
// number.
type proxy struct {
	listener net.Listener
	server   string

	mu        sync.Mutex
	conns     map[net.Conn]bool
	plans     map[operation]plan
	swallow   bool // forward nothing
	forgetful bool // as if the server had lost its data
	refuse    bool // close every connection at once
	refused   int  // so many were
}

type operation int32

const (
	opCreate      operation = 1
	opDelete      operation = 2
	opExists      operation = 3
	opGetData     operation = 4 // with a watch
	opGetChildren operation = 12
	opMulti       operation = 14
	opJoin        operation = -1 // one of several that begin with the creation of a node
)

// operationOf reads the operation of a request; that of the first of several is after its own.
func operationOf(request []byte) operation {
	op := operation(binary.BigEndian.Uint32(request[4:]))
	if op == opMulti && operation(binary.BigEndian.Uint32(request[8:])) == opCreate {
		return opJoin
	}
	return op
}

// plan is what happens at the next request of an operation.
type plan struct {
	when   moment
	do     func()        // may be nil
	struck chan struct{} // closed when it has happened
}

type moment string

const (
	cutBefore moment = "before the server has it"      // then the connection is cut
	cutAfter  moment = "after the server has answered" // which the client does not hear, because the connection is cut
	delayed   moment = "when it is time"               // the request goes on when do returns
)

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: listener, server: server, conns: map[net.Conn]bool{}, plans: map[operation]plan{}}
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// set changes how the proxy behaves.
func (p *proxy) set(f func(p *proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// at makes a plan for the next request of the operation.
func (p *proxy) at(op operation, when moment, do func()) (struck <-chan struct{}) {
	happened := make(chan struct{})
	p.set(func(p *proxy) { p.plans[op] = plan{when, do, happened} })
	return happened
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.set(func(p *proxy) {
		for conn := range p.conns {
			_ = conn.Close()
		}
		clear(p.conns)
	})
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	refuse, forgetful := p.refuse, p.forgetful
	if refuse {
		p.refused++
	}
	p.mu.Unlock()
	if refuse {
		return
	}
	greeting, err := message(client)
	if err != nil {
		return
	}
	if forgetful { // of the transactions, the last seen of which is at 4, and of the sessions, the client's being at 16
		if binary.BigEndian.Uint64(greeting[4:]) > 0 {
			return
		}
		if id := binary.BigEndian.Uint64(greeting[16:]); id != 0 {
			binary.BigEndian.PutUint64(greeting[16:], id^1<<40)
		}
	}
	if p.forward(server, greeting) != nil {
		return
	}
	var mu sync.Mutex
	awaited := map[uint32]plan{} // by the request's number: the answers at which the connection is cut
	go func() {
		defer client.Close()
		defer server.Close()
		for first := true; ; first = false {
			answer, err := message(server)
			if err != nil {
				return
			}
			if !first {
				mu.Lock()
				struck, ok := awaited[binary.BigEndian.Uint32(answer)]
				mu.Unlock()
				if ok {
					struck.strike()
					return
				}
			}
			if p.forward(client, answer) != nil {
				return
			}
		}
	}()
	for {
		request, err := message(client)
		if err != nil {
			return
		}
		op := operationOf(request)
		p.mu.Lock()
		planned, ok := p.plans[op]
		delete(p.plans, op)
		p.mu.Unlock()
		if ok && planned.when == cutAfter {
			mu.Lock()
			awaited[binary.BigEndian.Uint32(request)] = planned
			mu.Unlock()
		} else if ok {
			planned.strike()
			if planned.when == cutBefore {
				return
			}
		}
		if p.forward(server, request) != nil {
			return
		}
	}
}

func (p plan) strike() {
	if p.do != nil {
		p.do()
	}
	close(p.struck)
}

func (p *proxy) forward(to net.Conn, body []byte) error {
	p.mu.Lock()
	swallow := p.swallow
	p.mu.Unlock()
	if swallow {
		return nil
	}
	_, err := to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func message(from net.Conn) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(from, body)
	return body, err
}
