package observe_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers/observe"
)

func scrape(t *testing.T, m *observe.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, w.Code)
	text, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	return string(text)
}

// A label that anybody can fill as he likes fills the memory of whoever keeps the metrics.
func TestNoLabelComesFromOutside(t *testing.T) {
	t.Parallel()
	m := observe.NewMetrics(func(error) string { return "failed" })
	event := func(n int) {
		scope := domain.Scope(fmt.Sprintf("item/%d", n))
		grant := domain.Grant{Key: domain.Key(scope), Strategy: "redis"}
		m.Request("", fmt.Sprintf("METHOD%d", n), 405, time.Millisecond)
		m.Event(domain.Event{Kind: domain.EventSection, Grants: []domain.Grant{grant}, Err: fmt.Errorf("error %d", n)})
		m.Event(domain.Event{Kind: domain.EventReleased, Grants: []domain.Grant{grant}})
		m.Event(domain.Event{Kind: domain.EventLost, Grants: []domain.Grant{grant}})
		m.Event(domain.Event{Kind: domain.EventRefused, Refusal: &domain.Refusal{Grant: grant, Reason: "stale_fencing_token"}})
		m.Event(domain.Event{Kind: domain.EventRaised, Authority: &domain.Authority{Scope: scope, Strategy: "redis"}})
	}
	series := func() int { return strings.Count(scrape(t, m), "\nfencepost_") }
	event(0)
	before := series()
	for n := range 100 {
		event(n)
	}
	assert.Equal(t, before, series())
	assert.NotContains(t, scrape(t, m), "item/")
}

// Prometheus sees a counter rise only if it has seen it before.
func TestRareEventsAreCountedFromZero(t *testing.T) {
	t.Parallel()
	text := scrape(t, observe.NewMetrics(func(error) string { return "" }, "redis", "zookeeper"))
	for _, series := range []string{
		`fencepost_leases_lost_total{strategy="zookeeper"} 0`,
		`fencepost_refusals_total{reason="stale_fencing_token",strategy="redis"} 0`,
		`fencepost_refusals_total{reason="strategy_superseded",strategy="redis"} 0`,
		`fencepost_refusals_total{reason="fencing_required",strategy="redis"} 0`,
		`fencepost_reigns_total{event="superseded",scope="inventory",strategy="redis"} 0`,
		`fencepost_reigns_total{event="epoch_raised",scope="coupons",strategy="redis"} 0`,
		`fencepost_reigns_total{event="taken_over",scope="own",strategy="zookeeper"} 0`,
	} {
		assert.Contains(t, text, series+"\n")
	}
	assert.NotContains(t, text, `strategy="redlock"`)
}

func TestOversold(t *testing.T) {
	t.Parallel()
	m := observe.NewMetrics(func(error) string { return "" })
	assert.NotContains(t, scrape(t, m), "fencepost_oversold_units{", "what was never asked for is not 0")
	m.Oversold(time.Unix(1700000000, 0), map[domain.Fencing]domain.AuditSum{domain.FencingOff: {Oversold: 3, Drift: 4}})
	text := scrape(t, m)
	assert.Contains(t, text, `fencepost_oversold_units{fencing="enforced"} 0`)
	assert.Contains(t, text, `fencepost_oversold_units{fencing="off"} 3`)
	assert.Contains(t, text, `fencepost_drift_units{fencing="off"} 4`)
	assert.Contains(t, text, `fencepost_audit_timestamp_seconds 1.7e+09`)
}
