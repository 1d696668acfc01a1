package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
)

// conn is one client's connection. It does as little as it can: the generator shares its processors with all it measures,
// and what a full HTTP client costs would be missing from the fast contenders alone. Being its own also lets it hang up
// on a request.
type conn struct {
	net.Conn
	in   *bufio.Reader
	body []byte
}

func dial(ctx context.Context, address string) (*conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, in: bufio.NewReader(c)}, nil
}

// post returns the bytes of a request.
func post(address, path, body string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, address, len(body), body)
}

// exchange sends a request and reads the answer, whose body is valid until the next one.
func (c *conn) exchange(request []byte) (status int, body []byte, err error) {
	if _, err := c.Write(request); err != nil {
		return 0, nil, err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return 0, nil, fmt.Errorf("the answer begins with %q", line)
	}
	if status, err = strconv.Atoi(string(line[len("HTTP/1.1 "):len("HTTP/1.1 200")])); err != nil {
		return 0, nil, fmt.Errorf("the answer begins with %q", line)
	}
	length := -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, nil, err
		}
		name, value, found := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		if !found {
			break // the empty line
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, nil, err
			}
		}
	}
	if length < 0 {
		return 0, nil, errors.New("the answer does not say how long it is")
	}
	if cap(c.body) < length {
		c.body = make([]byte, length)
	}
	_, err = io.ReadFull(c.in, c.body[:length])
	return status, c.body[:length], err
}

// create sends a request that has to be answered with 201.
func (c *conn) create(request []byte) error {
	status, body, err := c.exchange(request)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("the answer is %d %.300s", status, body)
	}
	return err
}

// drain is how long the answers to what was sent are waited for. A lock that lets a client starve would keep the
// benchmark waiting; the client hangs up then, and its wait counts as it is.
const drain = 10 * time.Second

// The histogram's range, in microseconds.
const longest = int64(10 * time.Minute / time.Microsecond)

// Sample is what came of one measurement.
type Sample struct {
	PerSecond  float64 `json:"answers_per_second"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	Max        float64 `json:"max_ms"`
	Answers    int     `json:"answers"`    // that arrived while the time was taken
	Unanswered int     `json:"unanswered"` // requests that were hung up on

	created int // answers of all times, those of the warm-up included
}

// loop is a closed loop: each client sends its next request when it has the answer to the last.
type loop struct {
	addresses []string
	skus      []string
	clients   int
	warmUp    time.Duration
	duration  time.Duration
	drain     time.Duration

	begin, end time.Time
	hungUp     atomic.Bool

	mu        sync.Mutex
	sample    Sample
	latencies *hdrhistogram.Histogram
}

// run takes the time. Answers count that arrive while it is taken; latencies are those of all requests that were answered,
// or hung up on, after the warm-up, so that those who waited longest are not left out.
func (l *loop) run(ctx context.Context) (Sample, error) {
	conns := make([]*conn, 0, l.clients)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range l.clients {
		c, err := dial(ctx, l.addresses[i%len(l.addresses)])
		if err != nil {
			return Sample{}, err
		}
		conns = append(conns, c)
	}
	hangUp := func() {
		for _, c := range conns {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
	}
	l.latencies = hdrhistogram.New(1, longest, 3)
	l.begin = time.Now().Add(l.warmUp)
	l.end = l.begin.Add(l.duration)
	patience := time.AfterFunc(time.Until(l.end)+l.drain, func() {
		l.hungUp.Store(true)
		hangUp()
	})
	defer patience.Stop()
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, hangUp)()
	for i, c := range conns {
		group.Go(func() error { return l.client(c, l.addresses[i%len(l.addresses)]) })
	}
	if err := group.Wait(); err != nil {
		return Sample{}, err
	}
	s := l.sample
	s.PerSecond = float64(s.Answers) / l.duration.Seconds()
	s.P50, s.P99 = l.percentile(50), l.percentile(99)
	s.Max = float64(l.latencies.Max()) / 1000
	return s, nil
}

func (l *loop) percentile(p float64) float64 { return float64(l.latencies.ValueAtPercentile(p)) / 1000 }

func (l *loop) client(c *conn, address string) error {
	requests := make([][]byte, len(l.skus))
	for i, sku := range l.skus {
		requests[i] = post(address, "/v1/items/"+sku+"/reservations", `{"quantity":1}`)
	}
	for began := time.Now(); began.Before(l.end); {
		err := c.create(requests[rand.IntN(len(requests))])
		answered := time.Now()
		if err != nil && !l.hungUp.Load() {
			return err
		}
		l.add(began, answered, err == nil)
		if err != nil {
			return nil
		}
		began = answered
	}
	return nil
}

func (l *loop) add(began, ended time.Time, answered bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !answered:
		l.sample.Unanswered++
	case ended.Before(l.begin):
		l.sample.created++
		return
	case ended.Before(l.end):
		l.sample.Answers++
		fallthrough
	default:
		l.sample.created++
	}
	_ = l.latencies.RecordValue(ended.Sub(began).Microseconds()) // its range is wider than the time-outs
}
