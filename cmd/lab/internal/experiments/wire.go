package experiments

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"fencepost/cmd/lab/internal/instances"
	"fencepost/domain/postgres/pgproxy"
)

// wire is the network between one instance and PostgreSQL, on which a message can be delayed, as any network may delay it.
type wire struct {
	proxy   *pgproxy.Proxy
	refused chan refusal // what the server has answered with an error

	mu      sync.Mutex
	awaited []*held
	all     []*held
}

// held is a message that is to be delayed.
type held struct {
	sku, statement string
	skip           int           // so many are let through before
	sent           chan struct{} // closed when the instance has sent it
	let            chan struct{} // closed when it is to arrive
	letGo          func()
}

// wire makes one to the run's database.
func (r *Run) wire() (*wire, error) {
	w := &wire{refused: make(chan refusal, 1000)}
	var err error
	w.proxy, err = pgproxy.Start(r.database.Service, pgproxy.Watch{
		Judge: w.judge,
		Refused: func(e pgproxy.Error) {
			w.refused <- refusal{SQLState: e.SQLState, Detail: e.Detail, At: time.Now()}
		},
	})
	if err != nil {
		return nil, err
	}
	r.atEnd(func(context.Context) error { w.proxy.Close(); return nil })
	return w, nil
}

// startBehind starts an instance that reaches PostgreSQL by this wire.
func (r *Run) startBehind(ctx context.Context, w *wire, env ...string) (*instances.Instance, error) {
	instance, err := r.startOne(ctx, append(env, "FENCEPOST_DATABASE_URL="+w.proxy.URL)...)
	r.atEnd(func(context.Context) error { w.letAllGo(); return nil }) // or the instance could not end
	return instance, err
}

// hold delays a message about the item: the next whose statement begins like that, after so many others.
func (w *wire) hold(sku, statement string, skip int) *held {
	h := &held{sku: sku, statement: statement, skip: skip, sent: make(chan struct{}), let: make(chan struct{})}
	h.letGo = sync.OnceFunc(func() { close(h.let) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited, w.all = append(w.awaited, h), append(w.all, h)
	return h
}

func (w *wire) judge(_ *pgproxy.Proxy, request pgproxy.Request) pgproxy.Verdict {
	if h := w.next(request); h != nil {
		close(h.sent)
		<-h.let
	}
	return pgproxy.Pass
}

// next takes the message that is to be delayed off the list, if this is one.
func (w *wire) next(request pgproxy.Request) *held {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, h := range w.awaited {
		if !strings.HasPrefix(request.Statement, h.statement) || !request.Mentions(h.sku) {
			continue
		}
		if h.skip > 0 {
			h.skip--
			continue
		}
		w.awaited = slices.Delete(w.awaited, i, i+1)
		return h
	}
	return nil
}

func (w *wire) letAllGo() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.all {
		h.letGo()
	}
}

// refusal waits until the fence has refused something.
func (w *wire) refusal(ctx context.Context) (refusal, error) {
	for {
		r, err := await(ctx, "a refusal by the fence", w.refused)
		if err != nil || r.byFence() {
			return r, err
		}
	}
}

// refusal is an error of PostgreSQL.
type refusal struct {
	SQLState, Detail string
	At               time.Time
}

// byFence: the fence's own SQLSTATEs are a class that nobody else uses.
func (r refusal) byFence() bool { return strings.HasPrefix(r.SQLState, "FP") }

// presented and current are epoch and token of what was refused, and of the fence.
func (r refusal) presented() string { return r.grant("presented") }
func (r refusal) current() string   { return r.grant("current") }

func (r refusal) grant(of string) string {
	var detail map[string]*string
	if json.Unmarshal([]byte(r.Detail), &detail) != nil || detail[of+"_epoch"] == nil || detail[of+"_token"] == nil {
		return "–"
	}
	return *detail[of+"_epoch"] + "." + *detail[of+"_token"]
}
