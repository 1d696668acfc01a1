// Package control breaks things for the demonstration: it stops and kills instances, makes Redis forget, cuts an instance off
// from ZooKeeper, and holds back what an instance has sent to PostgreSQL. All of it is done to real processes and connections.
//
// It promises that an answer comes when the fault is done, and says in words what was done; that a fault which is not
// possible says why; and that an instance which was paused goes on by itself after a while, when nobody is left to have it.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"fencepost/cmd/lab/internal/databases"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/servers"
)

const (
	// How long a pause waits for the message that is to be on its way, and a server for being ready.
	patience = 10 * time.Second
	// PostgreSQL ends a transaction that says nothing for five seconds. A pause that is not ended has been forgotten.
	longestPause = 20 * time.Second
)

// Control is the laboratory's side of the demonstration.
type Control struct {
	lab     *servers.Lab
	wires   []*wires
	storage string // how careful PostgreSQL is with what it was told to keep

	doing  sync.Mutex // one fault at a time
	timers []*time.Timer

	mu        sync.Mutex
	instances []*instances.Instance
	states    []string // of the instances: running, paused or killed
}

// New lays the wires of n instances. Env leads each instance along its own.
func New(ctx context.Context, lab *servers.Lab, n int) (*Control, error) {
	c := &Control{lab: lab, states: make([]string, n), timers: make([]*time.Timer, n)}
	for i := range c.states {
		w, err := newWires(lab)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.wires = append(c.wires, w)
		c.states[i] = running
	}
	var err error
	c.storage, err = storage(ctx, lab)
	return c, err
}

// Env is what the i-th instance has to be told.
func (c *Control) Env(i int) []string { return c.wires[i].env() }

// Serve takes charge of the instances, which have been started.
func (c *Control) Serve(running []*instances.Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instances = running
}

// Close lets go of whatever is held back. The instances have ended by then.
func (c *Control) Close() {
	for _, timer := range c.timers {
		if timer != nil {
			timer.Stop()
		}
	}
	for _, w := range c.wires {
		w.close()
	}
}

// storage is PostgreSQL's own word on whether it syncs.
func storage(ctx context.Context, lab *servers.Lab) (text string, err error) {
	err = databases.Of(lab).Use(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT format('fsync %s, synchronous_commit %s', current_setting('fsync'), current_setting('synchronous_commit'))`).Scan(&text)
	})
	return text, err
}

// target is what a fault is done to.
type target struct {
	Instance int    `json:"instance"` // from 1
	Server   string `json:"server"`
	Resource string `json:"resource"`
	Message  string `json:"message"`

	// at is when it was done. What a fault causes can be told of before its answer.
	at time.Time
}

// faults are what can be done. Each answers in words, of which the reader sees all.
var faults = map[string]func(*Control, context.Context, *target) (string, error){
	"hold": (*Control).hold, "pause": (*Control).pause, "resume": (*Control).resume,
	"kill": (*Control).kill, "start": (*Control).start,
	"flush": (*Control).flush, "stop-server": (*Control).stopServer, "start-server": (*Control).startServer,
	"cut": (*Control).cut, "mend": (*Control).mend,
}

// ServeHTTP tells the state of the laboratory, or does a fault. Who may ask is up to who listens: on loopback, and nothing a
// browser can send from another site is understood, because it would not be declared as JSON.
func (c *Control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.Trim(r.URL.Path, "/")
	if r.Method == http.MethodGet && name == "" {
		answer(w, http.StatusOK, c.state())
		return
	}
	fault, known := faults[name]
	if r.Method != http.MethodPost || !known {
		answer(w, http.StatusNotFound, problem("not_found", "The laboratory knows no fault of this name."))
		return
	}
	var t target
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&t); err != nil || r.Header.Get("Content-Type") != "application/json" {
		answer(w, http.StatusBadRequest, problem("malformed", "Send a JSON object that names the instance or the server."))
		return
	}
	c.doing.Lock()
	defer c.doing.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	t.at = time.Now()
	did, err := fault(c, ctx, &t)
	if err != nil {
		answer(w, http.StatusConflict, problem("not_possible", err.Error()))
		return
	}
	answer(w, http.StatusOK, map[string]any{"at": t.at.UTC(), "did": did})
}

func problem(code, detail string) map[string]any {
	return map[string]any{"code": code, "detail": detail}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

type instanceState struct {
	URL   string `json:"url"`
	State string `json:"state"`
}

type serverState struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Source  string `json:"source"`
	// WhyNot says why the laboratory cannot stop this server; empty if it can.
	WhyNot string `json:"why_not,omitempty"`
}

// state does not wait for a fault that is being done.
func (c *Control) state() any {
	var s struct {
		Instances []instanceState `json:"instances"`
		Servers   []serverState   `json:"servers"`
		Machine   string          `json:"machine"`
		Storage   string          `json:"storage"`
	}
	c.mu.Lock()
	for i, instance := range c.instances {
		s.Instances = append(s.Instances, instanceState{instance.URL, c.states[i]})
	}
	c.mu.Unlock()
	for _, server := range c.lab.Servers {
		state := serverState{Name: server.Name, Version: server.Version, Source: server.Source}
		if _, err := c.server(server.Name); err != nil {
			state.WhyNot = err.Error()
		}
		s.Servers = append(s.Servers, state)
	}
	s.Machine = fmt.Sprintf("%d CPUs, %s/%s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	s.Storage = c.storage
	return s
}

// instance finds an instance whose state is one of those that the fault can be done in.
func (c *Control) instance(t *target, states ...string) (*instances.Instance, int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := t.Instance - 1
	if i < 0 || i >= len(c.instances) {
		return nil, 0, fmt.Errorf("instance must be between 1 and %d", len(c.instances))
	}
	if !slices.Contains(states, c.states[i]) {
		return nil, 0, fmt.Errorf("instance %d is %s", t.Instance, c.states[i])
	}
	return c.instances[i], i, nil
}

func (c *Control) now(i int, state string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.states[i] = state
}

// The states of an instance.
const (
	running = "running"
	paused  = "paused"
	killed  = "killed"
)

// server is one that the laboratory has started and can stop.
func (c *Control) server(name string) (*servers.Server, error) {
	s := c.lab.Server(name)
	switch {
	case s == nil:
		return nil, fmt.Errorf("the laboratory has no server %q", name)
	case s.Source == "unavailable":
		return nil, fmt.Errorf("%s is not there: %s", name, s.Detail)
	case s.Process == nil:
		return nil, fmt.Errorf("%s was given to the laboratory by %s, and is not its to break", name, s.Detail)
	}
	return s, nil
}

// hold has the next message of that kind about the resource, which the instance sends to PostgreSQL, stay on its way.
func (c *Control) hold(_ context.Context, t *target) (string, error) {
	_, i, err := c.instance(t, running, paused, killed)
	if err != nil {
		return "", err
	}
	if t.Resource == "" {
		return "", errors.New("resource must name the item whose messages are meant")
	}
	if err := c.wires[i].hold(t.Message, t.Resource); err != nil {
		return "", err
	}
	return fmt.Sprintf("the next %s of instance %d about %s will be held back on its way to PostgreSQL", t.Message, t.Instance, t.Resource), nil
}

// pause stops the process of an instance: when the message is on its way that was asked to be held back, if one was.
func (c *Control) pause(ctx context.Context, t *target) (string, error) {
	instance, i, err := c.instance(t, running)
	if err != nil {
		return "", err
	}
	caught, err := c.wires[i].caught(ctx)
	if err != nil {
		return "", err
	}
	t.at = time.Now()
	if err := instance.Pause(); err != nil {
		return "", err
	}
	c.now(i, paused)
	c.timers[i] = time.AfterFunc(longestPause, func() {
		c.doing.Lock()
		defer c.doing.Unlock()
		_, _ = c.resume(context.Background(), t) // if it is still paused
	})
	did := fmt.Sprintf("sent SIGSTOP to instance %d, process %d", t.Instance, instance.PID())
	if caught != "" {
		did += "; on its way to PostgreSQL, and held back: " + caught
	}
	return did, nil
}

// resume lets the message go that was held back, and then has the process go on, when it can find PostgreSQL's answer.
func (c *Control) resume(ctx context.Context, t *target) (string, error) {
	instance, i, err := c.instance(t, paused)
	if err != nil {
		return "", err
	}
	c.timers[i].Stop()
	did := fmt.Sprintf("sent SIGCONT to instance %d, process %d", t.Instance, instance.PID())
	if c.wires[i].letGo(ctx) {
		did = "let the message go, PostgreSQL has answered it; " + did
	}
	if err := instance.Resume(); err != nil {
		return "", err
	}
	c.now(i, running)
	return did, nil
}

func (c *Control) kill(ctx context.Context, t *target) (string, error) {
	instance, i, err := c.instance(t, running, paused)
	if err != nil {
		return "", err
	}
	pid := instance.PID()
	if err := instance.Kill(); err != nil {
		return "", err
	}
	c.now(i, killed)
	c.wires[i].letGo(ctx)
	return fmt.Sprintf("sent SIGKILL to instance %d, process %d", t.Instance, pid), nil
}

func (c *Control) start(ctx context.Context, t *target) (string, error) {
	instance, i, err := c.instance(t, killed)
	if err != nil {
		return "", err
	}
	if err := instance.Start(ctx); err != nil {
		return "", err
	}
	c.now(i, running)
	return fmt.Sprintf("started instance %d again, as process %d", t.Instance, instance.PID()), nil
}

func (c *Control) flush(ctx context.Context, t *target) (string, error) {
	s, err := c.server(t.Server)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(t.Server, servers.Redis) {
		return "", fmt.Errorf("%s is no Redis", t.Server)
	}
	client := redis.NewClient(&redis.Options{Addr: s.Address, MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	if err := client.FlushAll(ctx).Err(); err != nil {
		return "", fmt.Errorf("%s: %w", t.Server, err)
	}
	return fmt.Sprintf("sent FLUSHALL to %s at %s: its locks and its counters are gone", t.Server, s.Address), nil
}

// stopServer does not touch PostgreSQL: without the judge there is nothing to see.
func (c *Control) stopServer(_ context.Context, t *target) (string, error) {
	s, err := c.server(t.Server)
	if err != nil {
		return "", err
	}
	if t.Server == servers.Postgres {
		return "", errors.New("PostgreSQL is the judge of every race, and stays")
	}
	pid := s.PID()
	if err := s.Kill(); err != nil {
		return "", err
	}
	return fmt.Sprintf("sent SIGKILL to %s, process %d", t.Server, pid), nil
}

func (c *Control) startServer(ctx context.Context, t *target) (string, error) {
	s, err := c.server(t.Server)
	if err != nil {
		return "", err
	}
	if err := s.Start(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("started %s again, as process %d", t.Server, s.PID()), nil
}

func (c *Control) cut(_ context.Context, t *target) (string, error) {
	_, i, err := c.instance(t, running, paused, killed)
	if err != nil {
		return "", err
	}
	if c.wires[i].zookeeper == nil {
		return "", errors.New("there is no ZooKeeper to be cut off from")
	}
	c.wires[i].zookeeper.cut()
	return fmt.Sprintf("closed every connection of instance %d to ZooKeeper, and let no new one through", t.Instance), nil
}

func (c *Control) mend(_ context.Context, t *target) (string, error) {
	_, i, err := c.instance(t, running, paused, killed)
	if err != nil {
		return "", err
	}
	if c.wires[i].zookeeper == nil {
		return "", errors.New("there is no ZooKeeper to reach")
	}
	c.wires[i].zookeeper.mend()
	return fmt.Sprintf("let instance %d reach ZooKeeper again", t.Instance), nil
}
