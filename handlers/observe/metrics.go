package observe

import (
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fencepost/domain"
)

// Metrics are the numbers of one instance, in a registry of their own.
type Metrics struct {
	registry *prometheus.Registry
	outcome  func(error) string

	requests   *prometheus.HistogramVec
	sections   *prometheus.CounterVec
	wait, hold *prometheus.HistogramVec
	acquire    *prometheus.HistogramVec
	batch      *prometheus.HistogramVec
	lost       *prometheus.CounterVec
	refused    *prometheus.CounterVec
	reigns     *prometheus.CounterVec
	epoch      *prometheus.GaugeVec
	oversold   *prometheus.GaugeVec
	off        *prometheus.GaugeVec
	drift      *prometheus.GaugeVec
	audited    prometheus.Gauge
	readers    prometheus.Gauge
	gaps       prometheus.Counter
}

// Locks are taken in a fraction of a millisecond when all is well, and waited for as long as the configuration allows.
var lockBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// What a refusal can give as its reason.
var refusalReasons = []string{"stale_fencing_token", "strategy_superseded", "fencing_required"}

// NewMetrics makes the metrics. outcome names what sections end with, from a list of bounded length.
//
// What happens rarely is counted from 0 for each of the strategies: a series that begins with its first event has not risen, and
// so an alert on its increase would be silent at the very first.
func NewMetrics(outcome func(error) string, strategies ...string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		outcome:  outcome,

		requests: histogram("fencepost_http_request_duration_seconds", "Requests by route, method and status. Event streams are not among them.",
			prometheus.DefBuckets, "route", "method", "code"),
		sections: counter("fencepost_sections_total", "Critical sections by what they ended with: committed, or the code of an error.",
			"strategy", "outcome"),
		wait:    histogram("fencepost_lock_wait_seconds", "Waiting for the locks of a section, the time in the queue included, also in vain.", lockBuckets, "strategy"),
		acquire: histogram("fencepost_lock_acquire_seconds", "Asking for locks until they are held, the time in the queue before not included.", lockBuckets, "strategy"),
		batch: histogram("fencepost_batch_sections", "Sections of one resource that shared a transaction.",
			prometheus.ExponentialBuckets(1, 2, 11), "strategy"),
		hold: histogram("fencepost_lock_hold_seconds", "Holding locks, for one section or a batch of them.", lockBuckets, "strategy"),
		lost: counter("fencepost_leases_lost_total", "Leases that their holder lost while it was at work.", "strategy"),
		refused: counter("fencepost_refusals_total", "Transactions that the fence turned away, as recorded in the table refusals.",
			"strategy", "reason"),
		reigns: counter("fencepost_reigns_total", "Changes of authority that this instance made (taken_over, epoch_raised) or met (superseded).",
			"scope", "strategy", "event"),
		epoch: gauge("fencepost_epoch", "The epoch in charge of a shared scope.", "scope"),
		oversold: gauge("fencepost_oversold_units", "Units given out beyond the limit, counted by the database. Where fencing is enforced it must be 0.",
			"fencing"),
		drift: gauge("fencepost_drift_units", "By how much counters differ from the rows they count, over all resources. Where fencing is enforced it must be 0.",
			"fencing"),
		off: gauge("fencepost_off_resources", "Resources with which the audit finds anything wrong. Where fencing is enforced it must be 0.",
			"fencing"),
		audited: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fencepost_audit_timestamp_seconds", Help: "When the database was last asked what is oversold.",
		}),
		readers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "fencepost_event_readers", Help: "Open streams of events."}),
		gaps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fencepost_event_gaps_total", Help: "Readers of events that were told that they have missed some.",
		}),
	}
	m.registry.MustRegister(m.requests, m.sections, m.wait, m.acquire, m.hold, m.batch, m.lost, m.refused, m.reigns, m.epoch, m.oversold, m.drift, m.off,
		m.audited, m.readers, m.gaps,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector())
	for _, strategy := range strategies {
		m.lost.WithLabelValues(strategy)
		for _, reason := range refusalReasons {
			m.refused.WithLabelValues(strategy, reason)
		}
		for _, scope := range []string{string(domain.ScopeInventory), string(domain.ScopeCoupons), scopeOwn} {
			for _, event := range []domain.EventKind{domain.EventTakenOver, domain.EventRaised, domain.EventSuperseded} {
				m.reigns.WithLabelValues(scope, strategy, string(event))
			}
		}
	}
	return m
}

// Handler answers with the metrics, in whichever format the scraper asks for.
func (m *Metrics) Handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		Registry: m.registry, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4,
	})
}

// Event counts an event.
func (m *Metrics) Event(e domain.Event) {
	switch e.Kind {
	case domain.EventSection:
		strategy := strategyOf(e.Grants)
		m.sections.WithLabelValues(strategy, m.outcome(e.Err)).Inc()
		m.wait.WithLabelValues(strategy).Observe(e.LockWait.Seconds())
	case domain.EventBatch:
		m.batch.WithLabelValues(strategyOf(e.Grants)).Observe(float64(e.Batch))
	case domain.EventReleased:
		m.acquire.WithLabelValues(strategyOf(e.Grants)).Observe(e.Acquire.Seconds())
		m.hold.WithLabelValues(strategyOf(e.Grants)).Observe(e.Hold.Seconds())
	case domain.EventLost:
		m.lost.WithLabelValues(strategyOf(e.Grants)).Inc()
	case domain.EventRefused:
		m.refused.WithLabelValues(e.Refusal.Grant.Strategy, e.Refusal.Reason).Inc()
	case domain.EventTakenOver, domain.EventRaised, domain.EventSuperseded:
		m.reigns.WithLabelValues(scopeLabel(e.Authority.Scope), e.Authority.Strategy, string(e.Kind)).Inc()
		m.Epoch(*e.Authority)
	}
}

// strategyOf is empty for a section that ended before it was known under which strategy it would have run.
func strategyOf(grants []domain.Grant) string {
	if len(grants) == 0 {
		return ""
	}
	return grants[0].Strategy
}

// scopeOwn stands for all resources that are scopes of their own: a label for each would grow without bound.
const scopeOwn = "own"

func scopeLabel(scope domain.Scope) string {
	if shared(scope) {
		return string(scope)
	}
	return scopeOwn
}

func shared(scope domain.Scope) bool {
	return scope == domain.ScopeInventory || scope == domain.ScopeCoupons
}

// Epoch notes the epoch of a shared scope.
func (m *Metrics) Epoch(a domain.Authority) {
	if shared(a.Scope) {
		m.epoch.WithLabelValues(string(a.Scope)).Set(float64(a.Epoch))
	}
}

// Oversold notes the database's own count, per kind of fencing.
func (m *Metrics) Oversold(at time.Time, sums map[domain.Fencing]domain.AuditSum) {
	for _, fencing := range []domain.Fencing{domain.FencingEnforced, domain.FencingOff} {
		m.oversold.WithLabelValues(string(fencing)).Set(float64(sums[fencing].Oversold))
		m.drift.WithLabelValues(string(fencing)).Set(float64(sums[fencing].Drift))
		m.off.WithLabelValues(string(fencing)).Set(float64(sums[fencing].Off))
	}
	m.audited.Set(float64(at.UnixMilli()) / 1000)
}

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// Request counts a request. route is the pattern that matched, empty if none did.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	if !slices.Contains(methods, method) {
		method = "other" // a client may call it what it likes
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Observe(took.Seconds())
}

// Reader counts a stream of events until the returned function is called.
func (m *Metrics) Reader() (gone func()) {
	m.readers.Inc()
	return m.readers.Dec
}

// Gap counts a reader that has missed events.
func (m *Metrics) Gap() { m.gaps.Inc() }

// Pool is the state of a pool of database connections.
type Pool struct {
	Max, InUse, Idle int32
	Acquires, Waits  int64 // so many acquires had to wait
	Waited           time.Duration
}

// WatchPool shows the pool of connections to PostgreSQL as it is at each scrape.
func (m *Metrics) WatchPool(state func() Pool) {
	gauge := func(name, help string, value func(Pool) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(state()) })
	}
	counter := func(name, help string, value func(Pool) float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return value(state()) })
	}
	m.registry.MustRegister(
		gauge("fencepost_db_connections_max", "The most connections that requests may use.", func(p Pool) float64 { return float64(p.Max) }),
		gauge("fencepost_db_connections_in_use", "Connections that are in use.", func(p Pool) float64 { return float64(p.InUse) }),
		gauge("fencepost_db_connections_idle", "Connections that are open and not in use.", func(p Pool) float64 { return float64(p.Idle) }),
		counter("fencepost_db_acquires_total", "Connections taken from the pool.", func(p Pool) float64 { return float64(p.Acquires) }),
		counter("fencepost_db_acquire_waits_total", "Times that no connection was idle.", func(p Pool) float64 { return float64(p.Waits) }),
		counter("fencepost_db_acquire_wait_seconds_total", "Waiting for a connection when none was idle.", func(p Pool) float64 { return p.Waited.Seconds() }),
	)
}
