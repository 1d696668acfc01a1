package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain/postgres/postgrestest"
)

// metrics scrapes the instance; the keys are series, as in the text format.
func (i instance) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	status, text := i.call(t, "GET", "/metrics", "")
	require.Equal(t, 200, status)
	series := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		require.NoError(t, err, line)
		series[line[:at]] = value
	}
	return series
}

// events reads the instance's events until the stream ends.
func (i instance) events(t *testing.T) <-chan [2]string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", i.url+"/v1/events", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, 200, response.StatusCode)
	events := make(chan [2]string, 1000)
	go func() {
		defer response.Body.Close()
		defer close(events)
		var kind string
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				kind = name
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				events <- [2]string{kind, data}
			}
		}
	}()
	return events
}

func await(t *testing.T, events <-chan [2]string, kind string) (data string) {
	t.Helper()
	for {
		select {
		case e, ok := <-events:
			require.True(t, ok, "the stream has ended without %s", kind)
			if e[0] == kind {
				return e[1]
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no event %s", kind)
		}
	}
}

func redisURL(t *testing.T) string {
	t.Helper()
	url := os.Getenv("FENCEPOST_REDIS_URL")
	require.NotEmpty(t, url, "run the tests with 'make test'")
	return url
}

func count(t *testing.T, db *pgx.Conn, sql string) (n float64) {
	t.Helper()
	require.NoError(t, db.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func TestMetricsAgreeWithTheDatabase(t *testing.T) {
	url := postgrestest.New(t)
	db := postgrestest.Connect(t, url.OwnerURL)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": url.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_AUDIT_INTERVAL": "1ms",
		"FENCEPOST_REDIS_URL": redisURL(t), "FENCEPOST_INVENTORY_LOCK": "redis",
	})
	sku := uuid.NewString() // all tests share the Redis
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+sku+`","name":"Lamp","stock":20}`)
	require.Equal(t, 201, status, answer)
	// To Redis it is as if it had forgotten what it had counted: its next token is refused, and the epoch is raised.
	events := i.events(t)
	_, err := db.Exec(t.Context(), `SELECT present('item/' || $1, 'redis', 1, 9223372036854775807, gen_random_uuid())`, sku)
	require.NoError(t, err)

	var sold, refused float64
	var mu sync.Mutex
	var buyers sync.WaitGroup
	for range 4 {
		buyers.Go(func() {
			for range 8 {
				response, err := http.Post(i.url+"/v1/items/"+sku+"/reservations", "application/json", strings.NewReader(`{"quantity":1}`))
				if !assert.NoError(t, err) {
					return
				}
				response.Body.Close()
				mu.Lock()
				switch response.StatusCode {
				case 201:
					sold++
				case 409:
					refused++
				}
				mu.Unlock()
			}
		})
	}
	buyers.Wait()
	require.EqualValues(t, 20, sold)
	require.EqualValues(t, 12, refused)

	// The refusal is a row, a number and an event, all three with the same tokens.
	var row struct{ presented, current, grant string }
	require.NoError(t, db.QueryRow(t.Context(), `SELECT presented_token::text, current_token::text, presented_grant::text FROM refusals WHERE reason = 'stale_fencing_token'`).
		Scan(&row.presented, &row.current, &row.grant))
	var event struct {
		Reason    string
		Presented struct {
			Resource, Strategy, Epoch, Token string
			GrantID                          string `json:"grant_id"`
		}
		Current struct{ Epoch, Token string }
	}
	require.NoError(t, json.Unmarshal([]byte(await(t, events, "refused")), &event))
	assert.Equal(t, "stale_fencing_token", event.Reason)
	assert.Equal(t, "item/"+sku, event.Presented.Resource)
	assert.Equal(t, "redis", event.Presented.Strategy)
	assert.Equal(t, row.presented, event.Presented.Token)
	assert.Equal(t, row.grant, event.Presented.GrantID)
	assert.Equal(t, "9223372036854775807", event.Current.Token)
	assert.Equal(t, row.current, event.Current.Token)
	assert.Contains(t, await(t, events, "epoch_raised"), `"epoch":"2"`)
	assert.Contains(t, await(t, events, "section"), `"outcome":`)
	assert.Contains(t, await(t, events, "released"), `"hold_ms":`)

	// Where nothing is fenced, anything can happen to the rows.
	status, answer = i.call(t, "POST", "/v1/items", `{"sku":"raced","name":"Raced","stock":1,"lock":{"strategy":"none","fencing":"off"}}`)
	require.Equal(t, 201, status, answer)
	_, err = db.Exec(t.Context(), `
		INSERT INTO reservation_lines (resource, reservation, quantity, state, customer_id, created_by, created_at, expires_at)
		VALUES ('item/raced', gen_random_uuid(), 5, 'held', '', '', now(), now() + interval '1 hour')`)
	require.NoError(t, err)
	var m map[string]float64
	require.Eventually(t, func() bool {
		m = i.metrics(t)
		return m[`fencepost_oversold_units{fencing="off"}`] == 4 && m[`fencepost_drift_units{fencing="off"}`] == 5
	}, 20*time.Second, 10*time.Millisecond)
	assert.EqualValues(t, 1, m[`fencepost_off_resources{fencing="off"}`])
	assert.Contains(t, m, `fencepost_off_resources{fencing="enforced"}`)
	assert.Zero(t, m[`fencepost_off_resources{fencing="enforced"}`])
	assert.Contains(t, m, `fencepost_oversold_units{fencing="enforced"}`)
	assert.Zero(t, m[`fencepost_oversold_units{fencing="enforced"}`])

	assert.Equal(t, count(t, db, `SELECT count(*) FROM ledger WHERE kind = 'hold'`), m[`fencepost_sections_total{outcome="committed",strategy="redis"}`])
	assert.Equal(t, refused, m[`fencepost_sections_total{outcome="out_of_stock",strategy="redis"}`])
	var refusals, sections float64
	for series, n := range m {
		if strings.HasPrefix(series, "fencepost_refusals_total{") {
			refusals += n
		}
		if strings.HasPrefix(series, "fencepost_sections_total{") {
			sections += n
		}
	}
	assert.Equal(t, count(t, db, `SELECT count(*) FROM refusals`), refusals)
	assert.Equal(t, count(t, db, `SELECT count(*) FROM refusals WHERE reason = 'stale_fencing_token'`),
		m[`fencepost_refusals_total{reason="stale_fencing_token",strategy="redis"}`])
	assert.Equal(t, sections, m[`fencepost_lock_wait_seconds_count{strategy="redis"}`])
	assert.Equal(t, sold+refused, m[`fencepost_batch_sections_sum{strategy="redis"}`], "what was refused was in a batch, too")
	assert.Positive(t, m[`fencepost_batch_sections_count{strategy="redis"}`])
	assert.Positive(t, m[`fencepost_lock_acquire_seconds_count{strategy="redis"}`])
	assert.Positive(t, m[`fencepost_lock_hold_seconds_count{strategy="redis"}`])
	assert.LessOrEqual(t, m[`fencepost_lock_hold_seconds_count{strategy="redis"}`], sections+1, "a batch holds the lock once; one was refused")
	assert.Equal(t, count(t, db, `SELECT epoch FROM authorities WHERE scope = 'inventory'`), m[`fencepost_epoch{scope="inventory"}`])
	assert.EqualValues(t, 1, m[`fencepost_epoch{scope="coupons"}`])
	assert.GreaterOrEqual(t, m[`fencepost_reigns_total{event="epoch_raised",scope="inventory",strategy="redis"}`], 1.)
	assert.EqualValues(t, 1, m[`fencepost_reigns_total{event="taken_over",scope="coupons",strategy="postgres"}`])
	const reserve = `method="POST",route="/v1/items/:sku/reservations"}`
	assert.Equal(t, sold, m[`fencepost_http_request_duration_seconds_count{code="201",`+reserve])
	assert.Equal(t, refused, m[`fencepost_http_request_duration_seconds_count{code="409",`+reserve])
	assert.EqualValues(t, 16, m["fencepost_db_connections_max"])
	assert.GreaterOrEqual(t, m["fencepost_db_acquires_total"], sold)
	assert.EqualValues(t, 1, m["fencepost_event_readers"])
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "process_open_fds"} {
		assert.Positive(t, m[name], name)
	}

	// By hand, as the owner. The guard has to be switched off for that.
	for _, sql := range []string{`ALTER TABLE items DISABLE TRIGGER guard_update`, `UPDATE items SET on_hand = on_hand + 3 WHERE resource = 'item/` + sku + `'`} {
		_, err := db.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		m = i.metrics(t)
		return m[`fencepost_off_resources{fencing="enforced"}`] == 1 && m[`fencepost_drift_units{fencing="enforced"}`] == 3
	}, 2*time.Minute, 50*time.Millisecond, "the audit goes on, with pauses of twenty times what it takes")
}

// A lease that is taken away while its holder is at work.
func TestLostLeaseIsCounted(t *testing.T) {
	url := postgrestest.New(t)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": url.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_REVIEW_TIME": "10s", "FENCEPOST_LEASE_TTL": "500ms",
		"FENCEPOST_REDIS_URL": redisURL(t), "FENCEPOST_INVENTORY_LOCK": "redis",
	})
	options, err := redis.ParseURL(redisURL(t))
	require.NoError(t, err)
	client := redis.NewClient(options)
	defer client.Close()
	sku := uuid.NewString()
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"`+sku+`","name":"Lamp","stock":1}`)
	require.Equal(t, 201, status, answer)
	events := i.events(t)
	answered := make(chan int, 1)
	go func() {
		status, _ := i.call(t, "POST", "/v1/items/"+sku+"/reservations", `{"quantity":1}`)
		answered <- status
	}()
	require.Eventually(t, func() bool {
		locks, err := client.Keys(t.Context(), "*{item/"+sku+"}:lock").Result()
		require.NoError(t, err)
		return len(locks) == 1 && client.Del(t.Context(), locks[0]).Val() == 1
	}, 20*time.Second, time.Millisecond)
	assert.Contains(t, await(t, events, "lost"), `"item/`+sku+`"`)
	assert.Contains(t, await(t, events, "section"), `"outcome":"lock_lost"`)
	assert.Equal(t, 503, <-answered)
	m := i.metrics(t)
	assert.EqualValues(t, 1, m[`fencepost_leases_lost_total{strategy="redis"}`])
	assert.EqualValues(t, 1, m[`fencepost_sections_total{outcome="lock_lost",strategy="redis"}`])
}

// Streams end when the instance says that it is going, and not when it goes.
func TestStreamsEndAtDrain(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "3s",
	})
	events := i.events(t)
	i.signal()
	for range events {
	}
	select {
	case <-i.exit:
		t.Fatal("the stream has ended with the instance only")
	default:
	}
	assert.Equal(t, exitOK, <-i.exit)
}

// What the README says of the metrics is what there is.
func TestREADMEListsTheMetrics(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `fencepost_[a-z_]+`.*$").FindAllString(string(readme), -1) {
		for _, name := range regexp.MustCompile("`(fencepost_[a-z_]+)`").FindAllStringSubmatch(row, -1) {
			documented[name[1]] = true
		}
	}
	source, err := os.ReadFile("../../handlers/observe/metrics.go")
	require.NoError(t, err)
	defined := map[string]bool{}
	for _, name := range regexp.MustCompile(`"(fencepost_[a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		defined[name[1]] = true
	}
	assert.Equal(t, defined, documented)
}
