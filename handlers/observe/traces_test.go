package observe_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers/observe"
)

func outcome(error) string { return "committed" }

// Without an endpoint everything is as if there were no tracing at all.
func TestTracesAreOff(t *testing.T) {
	for _, env := range []map[string]string{
		{},
		{"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
	} {
		for name, value := range env {
			t.Setenv(name, value)
		}
		log := slog.New(slog.DiscardHandler)
		traces, err := observe.StartTraces(t.Context(), "test", outcome, log)
		require.NoError(t, err)
		assert.Nil(t, traces)
		assert.Nil(t, traces.Provider())
		assert.Nil(t, traces.Span())
		assert.Same(t, log, traces.Log(log))
		handler := http.NewServeMux()
		assert.Same(t, handler, traces.Handler(handler))
		assert.NoError(t, traces.Stop(t.Context()))
	}
}

func TestLogNamesTheTrace(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	var out bytes.Buffer
	traces, err := observe.StartTraces(t.Context(), "test", outcome, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	log := traces.Log(slog.New(slog.NewTextHandler(&out, nil))).With("a", 1)
	log.InfoContext(t.Context(), "outside")
	assert.NotContains(t, out.String(), "trace_id")
	ctx, end := traces.Span()(t.Context(), "section", []domain.Key{"item/lamp"})
	log.InfoContext(ctx, "inside")
	end([]domain.Grant{{Strategy: "redis", Epoch: 1, Token: 2}}, errors.New("an error"))
	assert.Regexp(t, `msg=inside a=1 trace_id=[0-9a-f]{32}\n$`, out.String())
	stopping, cancel := context.WithCancel(t.Context())
	cancel() // nothing listens there
	_ = traces.Stop(stopping)
}
