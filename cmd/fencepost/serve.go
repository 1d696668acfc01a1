package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/netutil"

	"fencepost/domain"
	"fencepost/domain/postgres"
	"fencepost/handlers"
	"fencepost/handlers/observe"
	"fencepost/locking"
	"fencepost/locking/strategies"
	"fencepost/web"
)

const (
	startTimeout = 10 * time.Second
	// Far more than requests that are served at once: clients keep connections open, and when all are taken nobody gets
	// through, not even to /healthz.
	maxConnections = 4096
	// How much garbage there may be, in percent of what is alive. That is a few megabytes, and every request leaves some
	// kilobytes behind: with Go's default they would be collected dozens of times a second. GOGC outranks it, and GOMEMLIMIT
	// bounds it.
	garbage = 400
)

type serveCommand struct{}

// Run opens what the service stands on, serves until ctx ends, and closes it in the reverse order.
func (serveCommand) Run(ctx context.Context, c *Config, con console) (err error) {
	if err := c.checkAll(); err != nil {
		return err
	}
	log := c.logger(con.err)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	traces, err := observe.StartTraces(starting, version(), handlers.Outcome, log)
	if err != nil {
		return configError{err.Error()}
	}
	defer stopTraces(ctx, traces, log)
	log = traces.Log(log)

	store, err := postgres.Open(starting, c.DatabaseURL, postgres.Options{
		MaxConns: int32(c.DatabaseConns), Instance: c.instance(), Log: log, Traces: traces.Provider(),
	})
	if err != nil {
		return err
	}
	defer store.Close()
	// Before the authorities are claimed: an instance that cannot listen must not put its strategy in charge, and with that
	// turn away the writes of those that can.
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listening: %w; end what listens there, or set FENCEPOST_LISTEN", err)
	}
	defer listener.Close()
	listenerTLS, err := c.tlsConfig(log)
	if err != nil {
		return err
	}
	backends, err := c.openStrategies(traces.Provider(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backends.Close()) }()
	var names []string
	for _, b := range backends {
		names = append(names, b.Name)
	}
	events, metrics := observe.NewHub(keptEvents), observe.NewMetrics(handlers.Outcome, names...)
	metrics.WatchPool(poolState(store))
	guard := locking.NewGuard(store, backends, locking.Options{
		LockWait: c.LockWait, MaxBatch: c.MaxBatch, MaxQueue: c.MaxQueue, Log: log,
		MaxTransactions: max(c.DatabaseConns/8, 1), // the others are for orders, reads, and whoever waits for a row
		Observe: func(e domain.Event) {
			metrics.Event(e)
			events.Publish(e)
		},
		Span: traces.Span(),
	})
	defer guard.Wait() // a lock that is not given back before the servers are left stays until its term ends
	claims := map[domain.Scope]string{domain.ScopeInventory: c.InventoryLock, domain.ScopeCoupons: c.CouponLock}
	if err := guard.Claim(starting, claims); err != nil {
		return err
	}

	service := &domain.Service{
		Guard:   guard,
		Store:   store,
		NewID:   func() string { return uuid.Must(uuid.NewV7()).String() },
		Now:     time.Now,
		HoldTTL: c.HoldTTL,
		MaxTTL:  c.MaxHoldTTL,
		Fencing: domain.Fencing(c.Fencing),
		Review:  review(c.ReviewTime),

		Holding:  c.holding(store),
		Guessing: c.guessing(store),
	}
	defer beside(ctx, newSweeper(store, service, c, log).run)() // ends before the guard's Wait: no section may be begun after that
	if c.AuditInterval > 0 {
		defer beside(ctx, func(ctx context.Context) { watchDatabase(ctx, store, metrics, c.AuditInterval, log) })()
	}

	var draining atomic.Bool
	handler := handlers.New(handlers.Config{
		Service:    service,
		Strategies: guard.Strategies,
		Ready: func(ctx context.Context) error {
			if draining.Load() {
				return errors.New("this instance is shutting down")
			}
			return ready(ctx, store, guard, log)
		},
		Authenticate:   c.authenticate(store, log),
		Take:           c.take(store),
		TLS:            listenerTLS != nil,
		Events:         events,
		Metrics:        metrics,
		Instances:      c.Instances,
		Page:           web.Files(c.called()),
		Demo:           c.demo(guard),
		RequestTimeout: requestTimeout,
		MaxRequests:    c.MaxRequests,
		Log:            log,
		Version:        version(),
	})
	drain := func() {
		draining.Store(true)
		events.Close() // a stream has no end of its own to wait for; its reader finds another instance
	}
	handler = traces.Handler(handler, "/healthz", "/readyz", "/metrics", "/v1/events")
	return c.serve(ctx, listener, listenerTLS, handler, drain, log)
}

// beside runs work that lasts until its context ends; end ends it, and returns when it is over.
func beside(ctx context.Context, work func(context.Context)) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	var working sync.WaitGroup
	working.Go(func() { work(ctx) })
	return func() {
		stop()
		working.Wait()
	}
}

// openStrategies opens every strategy that the configuration has servers for.
func (c *Config) openStrategies(traces trace.TracerProvider, log *slog.Logger) (locking.Backends, error) {
	redis.SetLogger(redisLog{log})
	return strategies.Open(strategies.Config{
		RedisURL: c.RedisURL, RedlockURLs: c.RedlockURLs,
		ZooKeeperServers: c.ZooKeeperServers, ZooKeeperAuth: c.ZooKeeperAuth,
		LeaseTTL: c.LeaseTTL, Log: log, Traces: traces,
	})
}

// review is a simulated slow step, nil if it takes no time.
func review(takes time.Duration) func(context.Context, domain.Reservation) error {
	if takes == 0 {
		return nil
	}
	return func(ctx context.Context, _ domain.Reservation) error {
		select {
		case <-time.After(takes):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// demo is nil outside a demonstration.
func (c *Config) demo(guard *locking.Guard) *handlers.Demo {
	if c.Demo != "on" {
		return nil
	}
	return &handlers.Demo{
		Review: review,
		Switch: func(ctx context.Context, key domain.Key, strategy string) (domain.Authority, error) {
			if _, err := guard.Spec(ctx, key.Kind(), strategy, ""); err != nil {
				return domain.Authority{}, err // names the strategies that there are
			}
			_, after, err := guard.Switch(ctx, domain.Scope(key), strategy, false)
			return after, err
		},
		Lab:      strings.TrimSuffix(c.LabURL, "/"),
		LeaseTTL: c.LeaseTTL,
	}
}

// redisLog takes the lines that go-redis would write to standard error on its own. The errors that they are about come
// back from the calls as well.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...))
}

// serve answers requests until ctx ends. Then it says on /readyz that it is going, waits so long that who sends requests
// here can notice, stops listening, and lets what has begun come to its end.
func (c *Config) serve(ctx context.Context, listener net.Listener, listenerTLS *tls.Config, handler http.Handler, drain func(), log *slog.Logger) error {
	scheme := "http://"
	if listenerTLS != nil {
		scheme = "https://"
	}
	log.Info("listening", "address", scheme+listener.Addr().String(), "inventory_lock", c.InventoryLock, "coupon_lock", c.CouponLock)
	server := newServer(handler, log)
	server.TLSConfig = listenerTLS
	failed := make(chan error, 1)
	limited := netutil.LimitListener(listener, maxConnections)
	go func() {
		if listenerTLS == nil {
			failed <- server.Serve(limited)
		} else {
			failed <- server.ServeTLS(limited, "", "") // its certificate is in the configuration
		}
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}

	drain()
	log.Info("shutting down; a second signal ends the process at once", "timeout", c.ShutdownTimeout)
	time.Sleep(c.DrainDelay)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		_ = server.Close()
		return fmt.Errorf("requests were still running after %s and were cut off; raise FENCEPOST_SHUTDOWN_TIMEOUT if they need longer: %w", c.ShutdownTimeout, err)
	}
	log.Info("stopped")
	return nil
}

// newServer bounds how long a client may take for everything: whoever takes for ever has a connection that others do not get.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      requestTimeout + 20*time.Second, // the outcome of a COMMIT is awaited beyond the request's time
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// ready tells whether a request could be served now. What it answers is shown to whoever asks, so the words of servers and
// drivers stay in the log.
func ready(ctx context.Context, store *postgres.Store, guard *locking.Guard, log *slog.Logger) error {
	err := store.Ping(ctx)
	if err == nil {
		err = guard.Ready(ctx)
	}
	if err == nil {
		return nil
	}
	log.Warn("not ready", "error", err)
	if unavailable, ok := errors.AsType[*domain.UnavailableError](err); ok {
		return fmt.Errorf("%s does not answer", unavailable.Server)
	}
	if errors.Is(err, domain.ErrSuperseded) {
		return errors.New("another lock strategy is in charge; restart this instance with the new one, or with its servers")
	}
	return errors.New("the log knows why")
}

// authenticate is nil where every caller is an admin.
func (c *Config) authenticate(store *postgres.Store, log *slog.Logger) func(context.Context, string) (domain.Caller, error) {
	if c.Auth == "off" {
		log.Warn("authentication is off: every caller is an admin")
		return nil
	}
	return store.Keys().Authenticate
}

// attempt is how the domain has a caller's attempts bounded.
type attempt = func(ctx context.Context, caller domain.Caller, attempt func() error) error

func (c *Config) holding(store *postgres.Store) attempt {
	if c.MaxOpenHolds == 0 {
		return nil
	}
	return store.Holds(int64(c.MaxOpenHolds)).Try
}

func (c *Config) guessing(store *postgres.Store) attempt {
	if c.CouponGuesses == 0 {
		return nil
	}
	return store.Guesses(int64(c.CouponGuesses)).Try
}

// take counts clients' requests and admins' as those of different callers, as their limits differ.
func (c *Config) take(store *postgres.Store) func(context.Context, domain.Caller) (domain.Quota, error) {
	clients, admins := store.Requests(int64(c.RateLimit)), store.Requests(int64(c.AdminRateLimit))
	return func(ctx context.Context, caller domain.Caller) (domain.Quota, error) {
		switch {
		case caller.Admin && c.AdminRateLimit > 0:
			return admins.Take(ctx, "admin "+caller.ID)
		case !caller.Admin && c.RateLimit > 0:
			return clients.Take(ctx, "client "+caller.ID)
		}
		return domain.Quota{}, nil
	}
}

// called are the instances that the page may call. Where there are keys it calls none but its own: where the others are is
// nobody's business on the open net.
func (c *Config) called() []string {
	if c.Auth == "off" {
		return c.Instances
	}
	return nil
}

// instance names this process where its refused writes are recorded.
func (c *Config) instance() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return host + " " + c.Listen
}

func (c *Config) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
