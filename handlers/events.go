package handlers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

const pathEvents = "/v1/events"

// Stream bounds the streams of events. What is 0 has a default.
type Stream struct {
	Readers      int           // open at the same time; 200
	PerCaller    int           // of one caller's, where there are keys to tell callers by; 8
	Heartbeat    time.Duration // how often a sign of life is sent, and the key looked at again; 15 s
	WriteTimeout time.Duration // how long a reader may leave what was sent to it unread; 10 s
}

func (s *Stream) setDefaults() {
	if s.Readers == 0 {
		s.Readers = 200
	}
	if s.PerCaller == 0 {
		s.PerCaller = 8
	}
	if s.Heartbeat == 0 {
		s.Heartbeat = 15 * time.Second
	}
	if s.WriteTimeout == 0 {
		s.WriteTimeout = 10 * time.Second
	}
}

// readers counts the streams that are open.
type readers struct {
	mu       sync.Mutex
	all      int
	byCaller map[string]int
}

// enterReader makes room for a stream; leave gives it back.
func (s *server) enterReader(caller domain.Caller) (leave func(), err error) {
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all >= s.Stream.Readers {
		return nil, errReaders
	}
	if s.Authenticate != nil && r.byCaller[caller.ID] >= s.Stream.PerCaller {
		return nil, errOwnReaders
	}
	r.all++
	r.byCaller[caller.ID]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all--
		if r.byCaller[caller.ID]--; r.byCaller[caller.ID] == 0 {
			delete(r.byCaller, caller.ID)
		}
	}, nil
}

const (
	// How long a browser waits before it comes back.
	retryMilliseconds = 2000
	// So many events go out in one write.
	maxBatch = 256
)

// alwaysReady never keeps a select waiting.
var alwaysReady = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// position is where a reader goes on: behind the last event that it has read, or behind the newest one. gap tells that this is
// not where it wants to.
func (s *server) position(c echo.Context) (last uint64, gap bool, err error) {
	id := queryOf(c)["last_event_id"] // scripts cannot set the header of an EventSource
	if header := c.Request().Header.Get("Last-Event-ID"); header != "" {
		id = header // a browser that comes back by itself; its address has not changed
	}
	if id != "" {
		if last, err = s.Events.Position(id); err == nil {
			return last, false, nil
		}
	}
	return s.Events.Last(), id != "", nil
}

// events streams what happens in this instance (server-sent events). A reader that shows the id of the last event it has
// read goes on behind it. If that is not possible, because it was too slow or the id is another instance's, it is sent a
// "gap": it has to read afresh what it shows, and the events go on from there.
func (s *server) events(c echo.Context) error {
	last, gap, err := s.position(c)
	if err != nil {
		return err
	}
	select {
	case <-s.Events.Closed():
		return fmt.Errorf("%w: this instance is shutting down", errNotReady)
	default:
	}
	leave, err := s.enterReader(callerOf(c))
	if err != nil {
		return err
	}
	defer leave()
	defer s.Metrics.Reader()()

	h := c.Response().Header()
	h.Set(echo.HeaderContentType, "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy would keep events back until it has enough of them
	if c.Request().Method == http.MethodHead {
		return c.NoContent(http.StatusOK)
	}
	c.Response().WriteHeader(http.StatusOK)
	control := http.NewResponseController(c.Response())

	var out bytes.Buffer
	// An id without data is remembered by the client and shown to nobody.
	fmt.Fprintf(&out, "retry: %d\nid: %s\n\n", retryMilliseconds, s.Events.ID(last))
	heartbeat := time.NewTicker(s.Stream.Heartbeat)
	defer heartbeat.Stop()
	batch := make([]domain.Event, 0, maxBatch)
	for {
		events, lost, wake := s.Events.Read(last, batch)
		if lost {
			last, gap = s.Events.Last(), true
		}
		if gap {
			gap = false
			s.Metrics.Gap()
			writeEvent(&out, s.Events.ID(last), "gap", struct{}{})
		}
		for _, e := range events {
			last++
			writeEvent(&out, s.Events.ID(last), string(e.Kind), eventData(e))
		}
		if out.Len() > 0 {
			// For each write anew: a limit for the whole answer would end every stream, and none at all would keep a reader
			// that has stopped to read for ever.
			if err := control.SetWriteDeadline(time.Now().Add(s.Stream.WriteTimeout)); err != nil {
				return fmt.Errorf("writing events: %w", err)
			}
			if _, err := out.WriteTo(c.Response()); err != nil {
				return nil // gone or stuck; it is told of the gap when it comes back
			}
			if err := control.Flush(); err != nil {
				return nil
			}
		}
		if wake == nil {
			wake = alwaysReady // there may be more; but the others below must have their turn
		}
		select {
		case <-wake:
		case <-heartbeat.C:
			if !s.stillAdmin(c) {
				return nil
			}
			out.WriteString(": still here\n\n")
		case <-s.Events.Closed():
			return nil
		case <-c.Request().Context().Done():
			return nil
		}
	}
}

// stillAdmin tells whether the key that opened a stream still may. A database that does not answer has not revoked it.
func (s *server) stillAdmin(c echo.Context) bool {
	caller, err := s.authenticate(c)
	return !errors.Is(err, errUnauthorized) && (err != nil || caller.Admin)
}

func writeEvent(out *bytes.Buffer, id, kind string, data any) {
	fmt.Fprintf(out, "id: %s\nevent: %s\ndata: ", id, kind)
	_ = json.NewEncoder(out).Encode(data) // one line; our own types cannot fail
	out.WriteByte('\n')
}

type grantJSON struct {
	Resource domain.Key `json:"resource,omitempty"`
	Strategy string     `json:"strategy,omitempty"`
	Epoch    string     `json:"epoch"`
	Token    string     `json:"token,omitempty"` // absent where the strategy issues none, or it was not granted
	GrantID  string     `json:"grant_id,omitempty"`
}

func newGrantJSON(g domain.Grant) grantJSON {
	j := grantJSON{Resource: g.Key, Strategy: g.Strategy, Epoch: strconv.FormatInt(g.Epoch, 10)}
	if g.Token != 0 {
		j.Token = strconv.FormatInt(int64(g.Token), 10)
	}
	if g.ID != (domain.GrantID{}) {
		j.GrantID = uuid.UUID(g.ID).String()
	}
	return j
}

// eventData is what clients see of an event. An error shows as its code: its text can have the words of a server in it.
func eventData(e domain.Event) any {
	at := e.At.UTC()
	switch e.Kind {
	case domain.EventRefused:
		current := domain.Grant{Epoch: e.Refusal.CurrentEpoch, Token: e.Refusal.CurrentToken, ID: e.Refusal.CurrentGrant}
		return struct {
			At        time.Time `json:"at"`
			Reason    string    `json:"reason"`
			Presented grantJSON `json:"presented"`
			Current   grantJSON `json:"current"`
		}{at, e.Refusal.Reason, newGrantJSON(e.Refusal.Grant), newGrantJSON(current)}
	case domain.EventTakenOver, domain.EventRaised, domain.EventSuperseded:
		return struct {
			At       time.Time `json:"at"`
			Strategy string    `json:"strategy"`
			authorityJSON
		}{at, e.Authority.Strategy, newAuthorityJSON(*e.Authority)}
	}
	grants := make([]grantJSON, len(e.Grants))
	for i, g := range e.Grants {
		grants[i] = newGrantJSON(g)
	}
	switch e.Kind {
	case domain.EventBegan, domain.EventRenewed:
		return struct {
			At      time.Time   `json:"at"`
			Grants  []grantJSON `json:"grants"`
			Acquire float64     `json:"acquire_ms,omitempty"` // of a renewal there is none
			Term    float64     `json:"term_ms,omitempty"`    // without a lease there is none
		}{at, grants, milliseconds(e.Acquire), milliseconds(e.Term)}
	case domain.EventSection:
		return struct {
			At       time.Time   `json:"at"`
			Grants   []grantJSON `json:"grants"`
			Outcome  string      `json:"outcome"`
			LockWait float64     `json:"lock_wait_ms"`
		}{at, grants, Outcome(e.Err), milliseconds(e.LockWait)}
	case domain.EventReleased:
		return struct {
			At      time.Time   `json:"at"`
			Grants  []grantJSON `json:"grants"`
			Acquire float64     `json:"acquire_ms"`
			Hold    float64     `json:"hold_ms"`
		}{at, grants, milliseconds(e.Acquire), milliseconds(e.Hold)}
	case domain.EventBatch:
		return struct {
			At       time.Time   `json:"at"`
			Grants   []grantJSON `json:"grants"`
			Sections int         `json:"sections"`
		}{at, grants, e.Batch}
	}
	return struct {
		At     time.Time   `json:"at"`
		Grants []grantJSON `json:"grants"`
	}{at, grants}
}
