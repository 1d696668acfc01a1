package main

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"fencepost/domain/postgres/postgrestest"
)

// receiver collects spans as an OTLP endpoint does.
type receiver struct {
	url   string
	mu    sync.Mutex
	spans []*tracepb.Span
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		var export collector.ExportTraceServiceRequest
		if err != nil || request.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, resource := range export.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				r.spans = append(r.spans, scope.Spans...)
			}
		}
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// path is the names of a span and those that it is part of, the innermost first.
func (r *receiver) path(span *tracepb.Span) (names []string) {
	for span != nil {
		names = append(names, span.Name)
		var parent *tracepb.Span
		for _, s := range r.spans {
			if string(s.SpanId) == string(span.ParentSpanId) {
				parent = s
			}
		}
		span = parent
	}
	return names
}

// paths of all spans of a trace.
func (r *receiver) paths(traceID string) (paths [][]string) {
	for _, s := range r.spans {
		if hex.EncodeToString(s.TraceId) == traceID {
			paths = append(paths, r.path(s))
		}
	}
	return paths
}

const remoteTrace = "4bf92f3577b34da6a3ce929d0e0e4736"

// One trace leads from the client through the request and the lock to the database.
func TestTraces(t *testing.T) {
	for _, strategy := range []string{"postgres", "redis"} {
		t.Run(strategy, func(t *testing.T) {
			r := newReceiver(t)
			db := postgrestest.New(t)
			i := start(t, map[string]string{
				"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s",
				"FENCEPOST_REDIS_URL": redisURL(t), "FENCEPOST_INVENTORY_LOCK": strategy,
				"OTEL_EXPORTER_OTLP_ENDPOINT": r.url,
			})
			sku := uuid.NewString()
			status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+sku+`","name":"Lamp","stock":1}`)
			require.Equal(t, 201, status, answer)
			status, answer = i.call(t, "POST", "/v1/items/"+sku+"/reservations", `{"quantity":1}`, "Traceparent", "00-"+remoteTrace+"-00f067aa0ba902b7-01")
			require.Equal(t, 201, status, answer)
			for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
				status, _ = i.call(t, "GET", path, "")
				require.Equal(t, 200, status)
			}
			i.signal()
			require.Equal(t, exitOK, <-i.exit)

			r.mu.Lock()
			defer r.mu.Unlock()
			const request = "POST /v1/items/:sku/reservations"
			paths := r.paths(remoteTrace)
			assert.Contains(t, paths, []string{request})
			assert.Contains(t, paths, []string{"section", request})
			assert.Contains(t, paths, []string{"COMMIT", "batch start", "section", request})
			if strategy == "redis" {
				assert.Contains(t, paths, []string{"evalsha", "lock", "section", request})
			}
			for _, s := range r.spans {
				path := r.path(s)
				assert.Contains(t, path[len(path)-1], "POST /v1/", "a trace begins with a request: %v", path)
			}
		})
	}
}

func TestTracesThatCannotBeSent(t *testing.T) {
	for variables, want := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317":                                         "fencepost: OTEL_EXPORTER_OTLP_ENDPOINT is not a URL: write http://HOST:4318\n",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector":                                       "fencepost: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not a URL: write http://HOST:4318\n",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc": "fencepost: OTEL_EXPORTER_OTLP_PROTOCOL is \"grpc\": set it to http/protobuf, or leave it out\n",
	} {
		env := map[string]string{"FENCEPOST_DATABASE_URL": goodURL}
		for _, variable := range strings.Fields(variables) {
			name, value, _ := strings.Cut(variable, "=")
			env[name] = value
		}
		t.Run(variables, func(t *testing.T) {
			code, _, stderr := runIn(t, env, "serve")
			assert.Equal(t, exitUsage, code)
			assert.Equal(t, want, stderr)
		})
	}
}

// A collector that is away costs lines in the log, and no request.
func TestTracesWithoutACollector(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
	})
	status, _ := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":1}`)
	assert.Equal(t, 201, status)
	i.signal()
	assert.Equal(t, exitOK, <-i.exit)
}
