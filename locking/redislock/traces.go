package redislock

import (
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"
)

// traceCalls makes each call of the client's a span, without its arguments, which are long and say nothing. Without a provider
// it leaves the client as it is.
func traceCalls(client redis.UniversalClient, provider trace.TracerProvider) error {
	if provider == nil {
		return nil
	}
	return redisotel.InstrumentTracing(client, redisotel.WithTracerProvider(provider), redisotel.WithDBStatement(false),
		redisotel.WithCallerEnabled(false), redisotel.WithDialFilter(true))
}
