package observe

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"fencepost/domain"
)

// Traces sends spans to an OTLP endpoint. A nil *Traces is tracing switched off, and everything that it hands out is as if it
// had never been asked.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	outcome  func(error) string
}

// traceEndpoint is where traces are to be sent; empty for nowhere. The variables are OpenTelemetry's own, as those of its SDK,
// which reads further ones: headers, the service's name, how many requests are traced.
func traceEndpoint() (endpoint string, err error) {
	if os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return "", nil
	}
	variable := "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	if endpoint = os.Getenv(variable); endpoint == "" {
		variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
		endpoint = os.Getenv(variable)
	}
	if endpoint == "" {
		return "", nil
	}
	if u, err := url.Parse(endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%s is not a URL: write http://HOST:4318", variable)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if protocol := os.Getenv(name); protocol != "" && protocol != "http/protobuf" {
			return "", fmt.Errorf("%s is %q: set it to http/protobuf, or leave it out", name, protocol)
		}
	}
	return endpoint, nil
}

// StartTraces returns nil if there is no endpoint.
func StartTraces(ctx context.Context, version string, outcome func(error) string, log *slog.Logger) (*Traces, error) {
	endpoint, err := traceEndpoint()
	if endpoint == "" || err != nil {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("preparing to send traces: %w", err)
	}
	// What the environment says of the service comes last, and so counts.
	r, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "fencepost"), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describing this instance for traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("sending traces failed", "error", err) }))
	provider := sdktrace.NewTracerProvider(sdktrace.WithResource(r), sdktrace.WithBatcher(exporter))
	return &Traces{provider: provider, tracer: provider.Tracer("fencepost"), outcome: outcome}, nil
}

// Stop sends what has not been sent yet.
func (t *Traces) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Provider is for the clients of databases and lock servers; nil if tracing is off.
func (t *Traces) Provider() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return ofRequests{t.provider}
}

// ofRequests makes no spans of what belongs to no request, such as health checks: each would be a trace.
type ofRequests struct{ trace.TracerProvider }

func (p ofRequests) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return tracerOfRequests{p.TracerProvider.Tracer(name, options...)}
}

type tracerOfRequests struct{ trace.Tracer }

func (t tracerOfRequests) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	if span := trace.SpanFromContext(ctx); !span.SpanContext().IsValid() {
		return ctx, span // one that does nothing
	}
	return t.Tracer.Start(ctx, name, options...)
}

// Handler traces the requests to h, but for those paths: they are asked all the time, or stay open for hours.
func (t *Traces) Handler(h http.Handler, untraced ...string) http.Handler {
	if t == nil {
		return h
	}
	paths := map[string]bool{}
	for _, path := range untraced {
		paths[path] = true
	}
	return otelhttp.NewHandler(h, "request",
		otelhttp.WithTracerProvider(t.provider),
		otelhttp.WithPropagators(propagation.TraceContext{}),
		otelhttp.WithFilter(func(r *http.Request) bool { return !paths[r.URL.Path] }))
}

// Span is for locking.Options; nil if tracing is off.
func (t *Traces) Span() func(ctx context.Context, name string, keys []domain.Key) (context.Context, func([]domain.Grant, error)) {
	if t == nil {
		return nil
	}
	return func(ctx context.Context, name string, keys []domain.Key) (context.Context, func([]domain.Grant, error)) {
		resources := make([]string, len(keys))
		for i, key := range keys {
			resources[i] = string(key)
		}
		ctx, span := t.tracer.Start(ctx, name, trace.WithAttributes(attribute.StringSlice("fencepost.resources", resources)))
		return ctx, func(grants []domain.Grant, err error) {
			if err != nil {
				span.SetAttributes(attribute.String("error.type", t.outcome(err)))
			}
			if len(grants) > 0 {
				span.SetAttributes(attribute.String("fencepost.strategy", grants[0].Strategy),
					attribute.Int64("fencepost.epoch", grants[0].Epoch), attribute.Int64("fencepost.token", int64(grants[0].Token)))
			}
			span.End()
		}
	}
}

// Log adds the trace to lines that are written for a request.
func (t *Traces) Log(log *slog.Logger) *slog.Logger {
	if t == nil {
		return log
	}
	return slog.New(traceLog{log.Handler()})
}

type traceLog struct{ slog.Handler }

func (h traceLog) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceLog{h.Handler.WithAttrs(attrs)}
}

func (h traceLog) WithGroup(name string) slog.Handler { return traceLog{h.Handler.WithGroup(name)} }
