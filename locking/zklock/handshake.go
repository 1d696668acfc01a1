package zklock

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// How long a server may take to accept a connection, and in all until it has answered to the handshake. The library
	// would wait for a frozen server for almost seven times the session time-out, with the others of the ensemble unasked.
	dialTimeout      = time.Second
	handshakeTimeout = 2 * time.Second
	// The pause after all servers were tried in vain. The library's own is a second, also after the first loss of a
	// connection to a single server, and a session may be no longer than that.
	roundPause = 100 * time.Millisecond
	// How long an ensemble may take to elect a leader: a second, or some when its data are large or its machines are busy.
	// It is no reason to turn callers away, who have a limit of their own.
	electionTime = 10 * time.Second
	// How long the first answer on a resumed session waits for the library to tell of its watches, for which it needs
	// microseconds. If it has none, they are waited for in vain.
	rewatchTime = 50 * time.Millisecond
)

// hosts tells the library which server to try next. Names are looked up at each dial and not once for all: servers move.
// All of it runs on the library's goroutine for connections, as do the handshakes.
type hosts struct {
	client   *client
	servers  []string
	next     int
	tried    int       // since a server has answered
	refused  int       // of these, how many took the connection and closed it without an answer
	answered time.Time // when a server did last
	began    time.Time // when the first of these was tried
}

func (h *hosts) Init(servers []string) error { h.servers = servers; return nil }
func (h *hosts) Len() int                    { return len(h.servers) }
func (h *hosts) Connected()                  {} // a handshake tells more: see greeted

// Next implements zk.HostProvider. Its second result makes the library fail what is queued and pause for a second. Here it
// only says that the client was closed, because the library looks for that at no other place while it cannot connect.
func (h *hosts) Next() (server string, closed bool) {
	if h.tried == 0 {
		h.began = time.Now()
	}
	vain := h.tried > 0 && h.tried%len(h.servers) == 0
	if vain && !h.electing() {
		h.client.unreachable()
	}
	if vain || time.Since(h.answered) < roundPause { // also not in a loop at a server that greets and closes
		select {
		case <-time.After(roundPause):
		case <-h.client.life.Done():
		}
	}
	h.tried++
	h.next = (h.next + 1) % len(h.servers)
	return h.servers[h.next], h.client.life.Err() != nil
}

// electing tells whether this may be an ensemble between two leaders: most of its servers are there, and refuse everybody.
func (h *hosts) electing() bool {
	return len(h.servers) > 1 && 2*h.refused > h.tried && time.Since(h.began) < electionTime
}

func (h *hosts) greeted() { h.tried, h.refused, h.answered = 0, 0, time.Now() }

// dial implements zk.Dialer.
func (h *hosts) dial(network, address string, _ time.Duration) (net.Conn, error) {
	limit := time.Now().Add(handshakeTimeout)
	dialer := net.Dialer{Timeout: dialTimeout}
	address, encrypted := strings.CutPrefix(address, TLS)
	var conn net.Conn
	var err error
	if encrypted {
		conn, err = tls.DialWithDialer(&dialer, network, address, &tls.Config{MinVersion: tls.VersionTLS12})
	} else {
		conn, err = dialer.Dial(network, address)
	}
	if err != nil {
		return nil, err
	}
	return &handshake{Conn: conn, hosts: h, limit: limit, rewatched: make(chan struct{}, 1)}, nil
}

// handshake is a connection whose first exchange is watched, for three things that the library does not do.
//
// It does not tell the session time-out that the server has granted, which may be longer or shorter than the one asked for.
//
// And it always names the last transaction that it has seen. A server refuses a client that has seen more than itself,
// which is right while another server may know more. But when the data of the whole ensemble was lost, the library would
// be refused forever. So when all servers have refused, and an election cannot be why, a new client is pretended: the
// session is then continued if it is known, and else declared over, which is what holders and waiters have to learn. Should
// a server that lags behind accept us so, the worst that it can do is not to know our node yet; then the lock counts as
// lost.
//
// Nor does it read the number of that transaction before it lets answers change it, when it takes up a session again and
// tells the server from where on its watches count (https://github.com/go-zookeeper/zk/pull/35). So the first answer waits
// until it has told. A session that watches nothing is not told of, and costs the pause.
type handshake struct {
	net.Conn
	hosts     *hosts
	limit     time.Time
	asked     bool
	answer    []byte // as much as has come
	done      bool
	resumed   bool          // the session was there before, so that there may be watches
	requested atomic.Bool   // a request goes out whose answer changes the number
	rewatched chan struct{} // has an element when the library tells of the watches
	waited    bool
}

// The request begins with its length, the version (4 bytes each) and the last transaction seen (8); the answer with its
// length, the version, the session time-out in milliseconds (4 each) and the session (8; zero if the old one is over).
const (
	requestSeen   = 8
	requestSeenTo = 16
	answerTimeout = 8
	answerSession = 12
	answerEnd     = 20
)

// Every later request begins with its length, its number and its operation (4 bytes each).
const (
	requestOperation = 8
	requestBody      = 12
)

// Operations whose answers have no transaction, and the one that tells of the watches.
const (
	opPing       = 11
	opSetAuth    = 100
	opSetWatches = 101
)

func (h *handshake) Write(p []byte) (int, error) {
	switch {
	case !h.asked && len(p) >= requestSeenTo:
		h.asked = true
		if h.hosts.refused >= len(h.hosts.servers) && !h.hosts.electing() {
			p = slices.Clone(p)
			clear(p[requestSeen:requestSeenTo])
		}
	case h.resumed && len(p) >= requestBody:
		switch binary.BigEndian.Uint32(p[requestOperation:]) {
		case opSetWatches:
			select {
			case h.rewatched <- struct{}{}:
			default: // many watches are told of in parts
			}
		case opPing, opSetAuth:
		default:
			h.requested.Store(true)
		}
	}
	return h.Conn.Write(p)
}

func (h *handshake) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if h.done {
		if h.resumed && !h.waited && h.requested.Load() {
			h.waited = true
			select {
			case <-h.rewatched:
			case <-time.After(rewatchTime):
			}
		}
		return n, err
	}
	h.answer = append(h.answer, p[:n]...)
	if len(h.answer) >= answerEnd {
		h.done = true
		h.hosts.greeted()
		h.resumed = h.hosts.client.greeted(session{
			id:      int64(binary.BigEndian.Uint64(h.answer[answerSession:])),
			timeout: time.Duration(binary.BigEndian.Uint32(h.answer[answerTimeout:])) * time.Millisecond,
		})
	} else if err != nil && len(h.answer) == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
		h.hosts.refused++
	}
	return n, err
}

func (h *handshake) SetReadDeadline(t time.Time) error {
	if !h.done {
		t = h.limit
	}
	return h.Conn.SetReadDeadline(t)
}
