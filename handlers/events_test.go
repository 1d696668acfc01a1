package handlers_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
	"fencepost/handlers/observe"
)

// watched is a server with an event stream.
type watched struct {
	t       *testing.T
	url     string
	hub     *observe.Hub
	metrics *observe.Metrics
}

func newWatched(t *testing.T, kept int, options ...option) watched {
	t.Helper()
	return newWatchedWithin(t, 0, kept, options...)
}

// newWatchedWithin has a server with time-outs.
func newWatchedWithin(t *testing.T, timeout time.Duration, kept int, options ...option) watched {
	t.Helper()
	w := watched{t: t, hub: observe.NewHub(kept), metrics: observe.NewMetrics(handlers.Outcome)}
	server := httptest.NewUnstartedServer(newHandler(newMemory(), append(options, func(c *handlers.Config) { c.Events, c.Metrics = w.hub, w.metrics })...))
	server.Config.ReadTimeout, server.Config.WriteTimeout = timeout, timeout
	server.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096) // so that one who does not read is noticed soon
		return ctx
	}
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(w.hub.Close) // a stream would keep the server from closing
	w.url = server.URL
	return w
}

// stream is an open stream of events.
type stream struct {
	t      *testing.T
	lines  *bufio.Scanner
	close  func()
	lastID string
}

type event struct{ id, kind, data string }

func (w watched) get(query string, headers ...string) (*http.Response, func()) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", w.url+"/v1/events"+query, nil)
	require.NoError(w.t, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { response.Body.Close() })
	return response, cancel
}

func (w watched) open(query string, headers ...string) *stream {
	w.t.Helper()
	response, cancel := w.get(query, headers...)
	require.Equal(w.t, 200, response.StatusCode)
	require.Equal(w.t, "text/event-stream", response.Header.Get("Content-Type"))
	require.Equal(w.t, "no-store", response.Header.Get("Cache-Control"))
	require.Empty(w.t, response.Header.Get("Content-Encoding"))
	s := &stream{t: w.t, lines: bufio.NewScanner(response.Body), close: cancel}
	first, ok := s.block()
	require.True(w.t, ok)
	require.Contains(w.t, first, "retry: ")
	return s
}

// block reads up to the next empty line, and minds the ids as a browser does.
func (s *stream) block() (text string, ok bool) {
	for s.lines.Scan() {
		line := s.lines.Text()
		if line == "" {
			return text, true
		}
		if id, is := strings.CutPrefix(line, "id: "); is {
			s.lastID = id
		}
		text += line + "\n"
	}
	return text, false
}

// next returns the next event; ok is false at the end of the stream.
func (s *stream) next() (e event, ok bool) {
	for {
		text, ok := s.block()
		if !ok {
			return e, false
		}
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.kind = value
			case "data":
				e.data = value
			}
		}
		if e.data != "" {
			return e, true
		}
	}
}

func (s *stream) want(kind string) event {
	s.t.Helper()
	e, ok := s.next()
	require.True(s.t, ok, "the stream has ended")
	require.Equal(s.t, kind, e.kind)
	return e
}

func (w watched) readers() string {
	recorder := httptest.NewRecorder()
	w.metrics.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(recorder.Body.String()) {
		if n, ok := strings.CutPrefix(line, "fencepost_event_readers "); ok {
			return strings.TrimSpace(n)
		}
	}
	return ""
}

func (w watched) awaitReaders(n string) {
	w.t.Helper()
	require.Eventually(w.t, func() bool { return w.readers() == n }, 30*time.Second, time.Millisecond)
}

func kind(n int) domain.Event { return domain.Event{Kind: domain.EventKind(fmt.Sprint(n)), At: now} }

func TestEventsOnTheWire(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 16)
	s := w.open("")
	grant := domain.Grant{Key: "item/lamp", Strategy: "zookeeper", Epoch: 2, Token: 9007199254740993, ID: domain.GrantID{15: 1}}
	authority := &domain.Authority{Scope: domain.ScopeInventory, Strategy: "redis", Epoch: 3, Since: now}
	for _, tt := range []struct {
		event domain.Event
		data  string
	}{
		{
			domain.Event{Kind: domain.EventBegan, Grants: []domain.Grant{{Key: "item/lamp", Strategy: "redis", Epoch: 1, Token: 7}}, Acquire: time.Millisecond, Term: 2 * time.Second},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"item/lamp","strategy":"redis","epoch":"1","token":"7"}],"acquire_ms":1,"term_ms":2000}`,
		},
		{
			domain.Event{Kind: domain.EventRenewed, Grants: []domain.Grant{{Key: "item/lamp", Strategy: "redis", Epoch: 1, Token: 7}}, Term: 2 * time.Second},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"item/lamp","strategy":"redis","epoch":"1","token":"7"}],"term_ms":2000}`,
		},
		{
			domain.Event{Kind: domain.EventSection, Grants: []domain.Grant{grant}, LockWait: 1500 * time.Microsecond},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"item/lamp","strategy":"zookeeper","epoch":"2","token":"9007199254740993","grant_id":"00000000-0000-0000-0000-000000000001"}],"outcome":"committed","lock_wait_ms":1.5}`,
		},
		{
			domain.Event{Kind: domain.EventSection, Err: fmt.Errorf("10.0.0.7: %w", domain.ErrLockTimeout)},
			`{"at":"2026-03-01T12:00:00Z","grants":[],"outcome":"lock_timeout","lock_wait_ms":0}`,
		},
		{
			domain.Event{Kind: domain.EventReleased, Grants: []domain.Grant{{Key: "item/lamp", Strategy: "none", Epoch: 1}}, Acquire: time.Millisecond, Hold: time.Second},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"item/lamp","strategy":"none","epoch":"1"}],"acquire_ms":1,"hold_ms":1000}`,
		},
		{
			domain.Event{Kind: domain.EventBatch, Grants: []domain.Grant{{Key: "item/lamp", Strategy: "redis", Epoch: 1, Token: 7}}, Batch: 3},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"item/lamp","strategy":"redis","epoch":"1","token":"7"}],"sections":3}`,
		},
		{
			domain.Event{Kind: domain.EventRefused, Refusal: &domain.Refusal{Grant: grant, Reason: "stale_fencing_token", CurrentEpoch: 2, CurrentToken: 9007199254740994}},
			`{"at":"2026-03-01T12:00:00Z","reason":"stale_fencing_token","presented":{"resource":"item/lamp","strategy":"zookeeper","epoch":"2","token":"9007199254740993","grant_id":"00000000-0000-0000-0000-000000000001"},"current":{"epoch":"2","token":"9007199254740994"}}`,
		},
		{
			domain.Event{Kind: domain.EventLost, Grants: []domain.Grant{{Key: "coupon/TEN", Strategy: "redis", Epoch: 1, Token: 7}}, Err: errors.New("dial tcp 10.0.0.7: refused")},
			`{"at":"2026-03-01T12:00:00Z","grants":[{"resource":"coupon/TEN","strategy":"redis","epoch":"1","token":"7"}]}`,
		},
		{
			domain.Event{Kind: domain.EventRaised, Authority: authority},
			`{"at":"2026-03-01T12:00:00Z","strategy":"redis","scope":"inventory","epoch":"3","since":"2026-03-01T12:00:00Z"}`,
		},
	} {
		tt.event.At = now
		w.hub.Publish(tt.event)
		e := s.want(string(tt.event.Kind))
		assert.JSONEq(t, tt.data, e.data)
		assert.Equal(t, w.hub.ID(w.hub.Last()), e.id)
	}
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"committed":           nil,
		"client_gone":         fmt.Errorf("reading: %w", context.Canceled),
		"lock_lost":           fmt.Errorf("%w (%w)", domain.ErrLockLost, context.Canceled),
		"replayed":            fmt.Errorf("answering: %w", &domain.Replay{}),
		"out_of_stock":        domain.ErrOutOfStock,
		"stale_fencing_token": &domain.RefusedError{Err: domain.ErrStaleToken},
		"internal":            errors.New("a bug"),
	} {
		assert.Equal(t, want, handlers.Outcome(err))
	}
}

// A reader that is cut off again and again, at any moment, sees every event once and in order.
func TestReadersResume(t *testing.T) {
	t.Parallel()
	const total = 3000
	w := newWatched(t, total)
	s := w.open("")
	go func() {
		for n := range total {
			w.hub.Publish(kind(n))
		}
	}()
	for n := 0; n < total; {
		for range min(1+rand.IntN(200), total-n) {
			require.Equal(t, fmt.Sprint(n), s.want(fmt.Sprint(n)).kind)
			n++
		}
		s.close()
		if rand.IntN(2) == 0 {
			s = w.open("?last_event_id=" + s.lastID)
		} else {
			s = w.open("?last_event_id=of-another-instance", "Last-Event-ID", s.lastID)
		}
	}
	w.hub.Publish(kind(total))
	s.want(fmt.Sprint(total))
}

// The id of a stream's beginning is enough: nothing is lost between the first connection and the first event.
func TestReaderThatSawNothingResumes(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 4)
	s := w.open("")
	s.close()
	w.hub.Publish(kind(0))
	w.open("", "Last-Event-ID", s.lastID).want("0")
}

func TestGap(t *testing.T) {
	t.Parallel()
	w, other := newWatched(t, 4), newWatched(t, 4)
	w.hub.Publish(kind(0))
	old := w.hub.ID(w.hub.Last())
	for n := range 5 { // one more than is kept
		w.hub.Publish(kind(n))
	}
	for name, id := range map[string]string{
		"too old": old, "of another instance": other.hub.ID(0), "never given": w.hub.ID(100), "nonsense": "; DROP TABLE",
	} {
		s := w.open("", "Last-Event-ID", id)
		gap := s.want("gap")
		assert.Equal(t, w.hub.ID(w.hub.Last()), gap.id, name)
		w.hub.Publish(kind(7))
		s.want("7")
		s.close()
	}
	s := w.open("", "Last-Event-ID", w.hub.ID(w.hub.Last()-4))
	for range 4 {
		s.want("7") // the oldest event that is kept is no gap
	}
	response, _ := w.get("?since=1")
	assert.Equal(t, 422, response.StatusCode)
}

// A reader that does not read is dropped, and another one gets every event meanwhile.
func TestStuckReader(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 64, func(c *handlers.Config) { c.Stream.WriteTimeout = 3 * time.Second })
	stuck, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	require.NoError(t, err)
	defer stuck.Close()
	require.NoError(t, stuck.(*net.TCPConn).SetReadBuffer(4096))
	_, err = io.WriteString(stuck, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	w.awaitReaders("1")
	s := w.open("")
	large := domain.Event{Kind: domain.EventSection, Grants: make([]domain.Grant, 100)}
	for i := range large.Grants {
		large.Grants[i].Key = domain.ItemKey(strings.Repeat("a", 64))
	}
	for w.readers() == "2" {
		w.hub.Publish(large)
		s.want("section")
	}
	require.Equal(t, "1", w.readers())
	w.hub.Publish(large)
	s.want("section")
}

func TestTooManyReaders(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 4, func(c *handlers.Config) { c.Stream.Readers = 2 })
	first, _ := w.open(""), w.open("")
	response, _ := w.get("")
	assert.Equal(t, 503, response.StatusCode)
	assert.NotEmpty(t, response.Header.Get("Retry-After"))
	first.close()
	w.awaitReaders("1")
	w.open("")
}

func TestTooManyReadersOfOneCaller(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 4, withKeys, func(c *handlers.Config) { c.Stream.PerCaller = 1 })
	first := w.open("", "Authorization", "Bearer "+adminKey)
	response, _ := w.get("", "Authorization", "Bearer "+adminKey)
	assert.Equal(t, 429, response.StatusCode)
	assert.NotEmpty(t, response.Header.Get("Retry-After"))
	first.close()
	w.awaitReaders("0")
	w.open("", "Authorization", "Bearer "+adminKey)
}

// The time-outs of the server, and its limit of requests, are not for streams.
func TestStreamsLast(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	w := newWatchedWithin(t, timeout, 4, func(c *handlers.Config) {
		c.Stream.Heartbeat, c.RequestTimeout, c.MaxRequests = timeout/4, timeout, 1
	})
	streams := []*stream{w.open(""), w.open("")}
	for _, s := range streams {
		for range 8 { // twice the time-outs
			text, ok := s.block()
			require.True(t, ok)
			require.Equal(t, ": still here\n", text)
		}
	}
	response, err := http.Get(w.url + "/v1/items")
	require.NoError(t, err)
	response.Body.Close()
	assert.Equal(t, 200, response.StatusCode)
	w.hub.Publish(kind(0))
	for _, s := range streams {
		s.want("0")
	}
}

func TestStreamsEndWithTheInstance(t *testing.T) {
	t.Parallel()
	w := newWatched(t, 4)
	s := w.open("")
	w.hub.Close()
	_, ok := s.next()
	assert.False(t, ok)
	response, _ := w.get("")
	assert.Equal(t, 503, response.StatusCode)
}

// A busy stream looks at its key and at the end of the instance like a quiet one.
func TestStreamOfARevokedKeyEnds(t *testing.T) {
	t.Parallel()
	for _, then := range []struct {
		busy   bool
		caller domain.Caller
		err    error
	}{{err: domain.ErrNotFound}, {busy: true, err: domain.ErrNotFound}, {caller: domain.Caller{ID: "boss"}}} { // the last is no admin any more
		var revoked atomic.Bool
		w := newWatched(t, 64, withKeys, func(c *handlers.Config) {
			valid := c.Authenticate
			c.Authenticate = func(ctx context.Context, key string) (domain.Caller, error) {
				if revoked.Load() {
					return then.caller, then.err
				}
				return valid(ctx, key)
			}
			c.Stream.Heartbeat = 10 * time.Millisecond
		})
		s := w.open("", "Authorization", "Bearer "+adminKey)
		stop := make(chan struct{})
		if then.busy {
			go func() {
				for {
					select {
					case <-stop:
						return
					default:
						w.hub.Publish(kind(0))
					}
				}
			}()
		}
		revoked.Store(true)
		for {
			if _, ok := s.block(); !ok {
				break
			}
		}
		require.NoError(t, s.lines.Err(), "the stream has ended for its reader's impatience")
		close(stop)
		w.awaitReaders("0")
	}
}
