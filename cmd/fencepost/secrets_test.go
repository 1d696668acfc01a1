package main

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// passwordOf is the password in a URL.
func passwordOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	password, ok := u.User.Password()
	require.True(t, ok)
	return password
}

// What the service is given to log in with, and what its callers are, it tells nobody: not in an answer, not in its log, not in
// a metric, whatever fails. Whom something is for, and under which code, is in the answers to those who asked, and nowhere else.
func TestSecretsStaySecret(t *testing.T) {
	db := postgrestest.New(t)
	_, boss, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL}, "keys", "create", "--name=boss", "--role=admin")
	boss = strings.TrimSpace(boss)
	require.NotEmpty(t, boss, stderr)
	secrets := []string{
		passwordOf(t, db.ServiceURL), boss,
		"canary-redis", "canary-redlock", "canary-zookeeper", "canary-collector", "canary-header", "canary-key", "canary-cookie", "canary-query",
	}
	private := []string{"canary-customer", "CANARY-CODE", "CANARY-GUESS", "canary-idempotency"}

	// All its servers but PostgreSQL are away, so that it has something to say about each.
	url, output := process(t, "FENCEPOST_AUTH=keys", "FENCEPOST_LOG_LEVEL=debug", "FENCEPOST_DATABASE_URL="+db.ServiceURL,
		"FENCEPOST_REDIS_URL=redis://:canary-redis@127.0.0.1:1/0",
		"FENCEPOST_REDLOCK_URLS=redis://:canary-redlock@127.0.0.1:1,redis://:canary-redlock@127.0.0.1:2,redis://:canary-redlock@127.0.0.1:3",
		"FENCEPOST_ZOOKEEPER_SERVERS=127.0.0.1:1", "FENCEPOST_ZOOKEEPER_AUTH=fencepost:canary-zookeeper",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:canary-collector@127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS=authorization=canary-header",
		"OTEL_BSP_SCHEDULE_DELAY=10", "FENCEPOST_COUPON_GUESSES=2")
	require.NotEmpty(t, url, output())
	i := instance{url: url}
	metrics := func() string {
		status, text := i.call(t, "GET", "/metrics", "", "Authorization", "Bearer "+boss)
		require.Equal(t, 200, status)
		return text
	}
	var answers strings.Builder
	for n, request := range [][3]string{
		{"POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":5}`},
		{"POST", "/v1/items", `{"sku":"bulb","name":"Bulb","stock":5,"lock":{"strategy":"redis"}}`},
		{"POST", "/v1/items/lamp/reservations", `{"quantity":1,"customer_id":"canary-customer"}`},
		{"POST", "/v1/items/lamp/reservations", `{"quantity":9,"customer_id":"canary-customer"}`},
		{"POST", "/v1/items/lamp/reservations", `{"quantity":"canary-customer"}`},
		{"POST", "/v1/coupons", `{"code":"CANARY-CODE","max_redemptions":1}`},
		{"POST", "/v1/coupons/CANARY-CODE/redemptions", `{"customer_id":"canary-customer"}`},
		{"POST", "/v1/coupons/CANARY-CODE/redemptions", `{"customer_id":"canary-customer"}`},
		{"POST", "/v1/coupons/CANARY-GUESS/redemptions", `{"customer_id":"canary-customer"}`},
		{"GET", "/v1/items?access_token=canary-query", ""},
		{"GET", "/v1/items?cursor=canary-query", ""},
		{"GET", "/v1/nowhere?canary-query", ""},
		{"GET", "/v1/strategies", ""},
		{"GET", "/v1/audit", ""},
		{"GET", "/readyz", ""},
	} {
		for _, authorization := range []string{"Bearer " + boss, "Bearer canary-key", "Basic canary-key", boss} {
			_, answer := i.call(t, request[0], request[1], request[2], "Authorization", authorization, "Cookie", "session=canary-cookie",
				"Proxy-Authorization", "canary-cookie", "X-Api-Key", "canary-cookie", "Idempotency-Key", fmt.Sprint("canary-idempotency-", n))
			answers.WriteString(answer + "\n")
		}
	}
	scraped := metrics()
	require.Contains(t, scraped, "fencepost_http_request_duration_seconds_count", "the negative control: there is something to look through")
	require.Contains(t, output(), `route=/v1/coupons/:code/redemptions`)
	require.Contains(t, answers.String(), "canary-customer")
	require.Eventually(t, func() bool { return strings.Contains(output(), "sending traces failed") }, 30*time.Second, 10*time.Millisecond)
	for where, text := range map[string]string{"an answer": answers.String(), "the log": output(), "a metric": scraped} {
		for _, secret := range secrets {
			assert.NotContains(t, text, secret, where)
		}
		if where == "an answer" {
			continue
		}
		for _, name := range private {
			assert.NotContains(t, text, name, where)
		}
	}

	code, _, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": strings.Replace(db.ServiceURL, secrets[0], "canary-wrong", 1), "FENCEPOST_AUTH": "off"}, "serve")
	assert.Equal(t, exitFailed, code)
	assert.Contains(t, stderr, "password authentication failed")
	assert.NotContains(t, stderr, "canary")
}
