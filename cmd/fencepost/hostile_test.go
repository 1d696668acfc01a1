package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/netutil"

	"fencepost/domain/postgres/postgrestest"
)

// The README's table of attacks tells the truth: every row has tests, and they are there.
func TestAttacksHaveTests(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\| .* \|$`).FindAllString(section(t, "Attacks"), -1)[1:] // without the head
	require.NotEmpty(t, rows)
	for _, row := range rows {
		tests := regexp.MustCompile("\\[`(\\w+)`\\]\\(([a-z0-9_/]+_test\\.go)\\)").FindAllStringSubmatch(row, -1)
		if strings.HasPrefix(row, "| ---") {
			continue
		}
		assert.NotEmpty(t, tests, row)
		assert.Equal(t, strings.Count(row, "]("), len(tests), row)
		for _, test := range tests {
			source, err := os.ReadFile(filepath.Join("../..", test[2]))
			if assert.NoError(t, err) {
				assert.Regexp(t, `(?m)^func `+test[1]+`\(`, string(source), test[2])
			}
		}
	}
}

// hostile is text that would do something if it were ever taken for SQL, or for anything but text.
var hostile = []string{
	`'`, `"`, `\`, `''`, `\'`, `';--`, `' OR '1'='1`, `' OR 1=1--`, `'; DROP TABLE items;--`, `'; UPDATE items SET on_hand=999;--`,
	`') ; DELETE FROM ledger; --`, `1; SELECT pg_sleep(10)`, `' || pg_sleep(10) || '`, `' UNION SELECT digest FROM api_keys--`,
	`$1`, `$$`, `$$; DROP TABLE items; $$`, `%`, `_`, `%s%n`, `{a,b}`, `/*`, `*/`, `--`, `E'\\x27'`, `U&'\0027'`,
	`item/lamp`, `../lamp`, `lamp'`, `lamp"`, `lamp;`, `ʼ; DROP TABLE items`, `＇`, `<script>alert(1)</script>`, `${jndi:ldap://x}`, `{{7*7}}`,
}

// contents is everything that is stored, but for what counts what was asked.
func contents(t *testing.T, db *pgx.Conn) (text string) {
	t.Helper()
	for _, table := range []string{"fences", "items", "reservation_lines", "coupons", "redemptions", "ledger", "api_keys", "authorities"} {
		var rows string
		require.NoError(t, db.QueryRow(t.Context(), `SELECT COALESCE(string_agg(t::text, E'\n' ORDER BY t::text), '') FROM `+table+` t`).Scan(&rows))
		text += table + "\n" + rows + "\n"
	}
	return text
}

// No text of a client's, wherever it stands, does anything but be stored, or be refused.
func TestHostileText(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s"})
	owner := postgrestest.Connect(t, db.OwnerURL)
	quoted := func(s string) string {
		var buffer bytes.Buffer
		require.NoError(t, json.NewEncoder(&buffer).Encode(s))
		return strings.TrimSpace(buffer.String())
	}
	status, answer := i.call(t, "POST", "/v1/items", `{"sku":"lamp","name":"Lamp","stock":1000}`)
	require.Equal(t, 201, status, answer)
	status, answer = i.call(t, "POST", "/v1/coupons", `{"code":"TEN","max_redemptions":1000}`)
	require.Equal(t, 201, status, answer)
	withKeys := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s"})
	for n, text := range hostile {
		path := url.PathEscape(text)
		// Where a name is expected, it is refused, and nothing has changed.
		before := contents(t, owner)
		for _, request := range [][3]string{
			{"POST", "/v1/items", `{"sku":` + quoted(text) + `,"name":"a","stock":1}`},
			{"POST", "/v1/items", `{"sku":"b","name":"a","stock":1,"lock":{"strategy":` + quoted(text) + `}}`},
			{"POST", "/v1/items", `{"sku":"b","name":"a","stock":1,"lock":{"fencing":` + quoted(text) + `}}`},
			{"POST", "/v1/items", `{` + quoted(text) + `:1,"sku":"b","name":"a","stock":1}`},
			{"POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1},{"sku":` + quoted(text) + `,"quantity":1}]}`},
			{"POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1}],"customer_id":"c","coupon":` + quoted(text) + `}`},
			{"POST", "/v1/coupons", `{"code":` + quoted(text) + `,"max_redemptions":1}`},
			{"POST", "/v1/coupons", `{"code":"b","max_redemptions":1,"lock":{"strategy":` + quoted(text) + `}}`},
			{"POST", "/v1/coupons", `{"code":"b","max_redemptions":1,"valid_from":` + quoted(text) + `}`},
			{"POST", "/v1/coupons/TEN/redemptions", `{"customer_id":"c","reservation_id":` + quoted(text) + `}`},
			{"POST", "/v1/items/" + path + "/reservations", `{"quantity":1}`},
			{"POST", "/v1/items/" + path + "/restocks", `{"quantity":1}`},
			{"POST", "/v1/coupons/" + path + "/redemptions", `{"customer_id":"c"}`},
			{"POST", "/v1/reservations/" + path + "/confirm", ""},
			{"POST", "/v1/reservations/rsv_" + path + "/release", ""},
			{"POST", "/v1/redemptions/rdm_" + path + "/rollback", ""},
			{"GET", "/v1/items/" + path, ""},
			{"GET", "/v1/coupons/" + path, ""},
			{"GET", "/v1/reservations/rsv_" + path, ""},
			{"GET", "/v1/audit?resource=item/" + url.QueryEscape(text), ""},
			{"GET", "/v1/items?limit=" + url.QueryEscape(text), ""},
			{"GET", "/v1/items?" + url.QueryEscape(text) + "=1", ""},
		} {
			status, answer := i.call(t, request[0], request[1], request[2])
			assert.True(t, status >= 400 && status < 500, "%v: %d %s", request, status, answer)
			assert.NotContains(t, answer, "SQLSTATE")
		}
		for _, authorization := range []string{text, "Bearer " + text, "Bearer fp_" + text} {
			status, answer := withKeys.call(t, "GET", "/v1/items", "", "Authorization", authorization)
			assert.Equal(t, 401, status, "%s: %s", authorization, answer)
		}
		// Where a place in a list is expected, or something to compare with, it is none.
		for _, request := range [][4]string{
			{"GET", "/v1/items?cursor=" + url.QueryEscape(text), "X-Request-Id", text},
			{"GET", "/v1/audit?cursor=" + url.QueryEscape(text), "Origin", text},
			{"GET", "/v1/items/lamp", "If-None-Match", text},
			{"HEAD", "/v1/events", "Last-Event-ID", text},
		} {
			status, answer := i.call(t, request[0], request[1], "", request[2], request[3])
			assert.Less(t, status, 500, "%v: %s", request, answer)
			assert.NotContains(t, answer, "SQLSTATE")
		}
		for _, header := range []string{text, `"` + text + `"`} {
			status, answer := i.call(t, "POST", "/v1/items/lamp/restocks", `{"quantity":1}`, "If-Match", header)
			assert.True(t, status >= 400 && status < 500 || header == "*", "%s: %d %s", header, status, answer)
		}
		assert.True(t, before == contents(t, owner), "%s has changed something", text)
		// Where text is free, it is stored as it is.
		status, answer := i.call(t, "POST", "/v1/items/lamp/reservations", `{"quantity":1,"customer_id":`+quoted(text)+`}`)
		require.Equal(t, 201, status, answer)
		var stored struct {
			CustomerID string `json:"customer_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(answer), &stored))
		assert.Equal(t, text, stored.CustomerID)
		status, answer = i.call(t, "POST", "/v1/coupons/TEN/redemptions", `{"customer_id":`+quoted(text)+`}`)
		require.Equal(t, 201, status, answer)
		status, answer = i.call(t, "POST", "/v1/orders", `{"lines":[{"sku":"lamp","quantity":1}],"coupon":"TEN","customer_id":`+quoted(text)+`}`)
		require.Equal(t, 201, status, answer)
		status, answer = i.call(t, "POST", "/v1/items", fmt.Sprintf(`{"sku":"named-%d","name":%s,"stock":1}`, n, quoted(text)))
		require.Equal(t, 201, status, answer)
		var named struct{ Name string }
		_, answer = i.call(t, "GET", fmt.Sprintf("/v1/items/named-%d", n), "")
		require.NoError(t, json.Unmarshal([]byte(answer), &named))
		assert.Equal(t, text, named.Name)
		status, answer = i.call(t, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`, "Idempotency-Key", "a-key-"+text)
		assert.True(t, status == 201 || status == 422, "%s: %d %s", text, status, answer)
	}
	code, _, stderr := runIn(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL}, "audit")
	assert.Equal(t, exitOK, code, stderr)
}

// What a proxy would write, anybody can: none of it changes who the caller is, how he is counted, or where an answer leads.
func TestForwardingHeadersAreNotBelieved(t *testing.T) {
	db := postgrestest.New(t)
	env := map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s", "FENCEPOST_RATE_LIMIT": "5"}
	_, key, _ := runIn(t, env, "keys", "create", "--name=shop", "--role=client")
	i := start(t, env)
	limited := 0
	for n := range 12 {
		address := "10.0.0." + string(rune('0'+n%10))
		status, answer := i.call(t, "GET", "/v1/items", "", "Authorization", "Bearer "+strings.TrimSpace(key),
			"X-Forwarded-For", address, "X-Real-Ip", address, "Forwarded", "for="+address, "X-Forwarded-Host", "evil.example",
			"X-Forwarded-Proto", "https", "X-Forwarded-User", "boss", "X-Original-Url", "/v1/audit", "X-Http-Method-Override", "DELETE")
		assert.NotContains(t, answer, "evil.example")
		if status == 429 {
			limited++
		} else {
			assert.Equal(t, 200, status)
		}
	}
	assert.GreaterOrEqual(t, limited, 12-2*5, "two minutes at most")
	for _, header := range []string{"X-Forwarded-For", "X-Real-Ip", "X-Forwarded-User", "X-Remote-User"} {
		status, _ := i.call(t, "GET", "/v1/items", "", header, "127.0.0.1")
		assert.Equal(t, 401, status, header)
	}
}

// Callers who guess codes at two instances at once hit nothing, are soon cut off, and learn nothing from any byte of what they
// are told: neither which codes there are, nor which were right but for the time.
func TestCouponGuesses(t *testing.T) {
	guesses := soaked(100_000)
	db := postgrestest.New(t)
	const limit, guessers, workers = 5, 4, 4
	env := map[string]string{
		"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_DRAIN_DELAY": "0s",
		"FENCEPOST_COUPON_GUESSES": strconv.Itoa(limit), "FENCEPOST_RATE_LIMIT": "0",
	}
	key := func(name, role string) string {
		_, key, stderr := runIn(t, env, "keys", "create", "--name="+name, "--role="+role)
		require.NotEmpty(t, key, stderr)
		return strings.TrimSpace(key)
	}
	boss, honest := key("boss", "admin"), key("honest", "client")
	instances := []instance{start(t, env), start(t, env)}
	coupon := func(more string) string {
		status, answer := instances[0].call(t, "POST", "/v1/coupons", `{"max_redemptions":1000000`+more+`}`, "Authorization", "Bearer "+boss)
		require.Equal(t, 201, status, answer)
		var made struct{ Code string }
		require.NoError(t, json.Unmarshal([]byte(answer), &made))
		return made.Code
	}
	real, over, early := coupon(""), coupon(`,"valid_until":"2020-01-01T00:00:00Z"`), coupon(`,"valid_from":"2099-01-01T00:00:00Z"`)
	for range 100 {
		coupon("")
	}
	require.Regexp(t, `^[A-Z2-9]{4}(-[A-Z2-9]{4}){3}$`, real)
	guess := func() string { // of the same form
		code := []byte(rand.Text()[:16])
		return fmt.Sprintf("%s-%s-%s-%s", code[:4], code[4:8], code[8:12], code[12:])
	}
	transport := &http.Transport{MaxIdleConnsPerHost: guessers * workers}
	defer transport.CloseIdleConnections()
	passing := regexp.MustCompile(`(?m)^(Date|Retry-After): .*\r\n`)
	try := func(i instance, key, code string) (status int, answer string) {
		r, err := http.NewRequestWithContext(t.Context(), "POST", i.url+"/v1/coupons/"+code+"/redemptions", strings.NewReader(`{"customer_id":"c"}`))
		require.NoError(t, err)
		r.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + key}, "X-Request-Id": {"the-same-for-all"}}
		response, err := transport.RoundTrip(r)
		if !assert.NoError(t, err) {
			return 0, ""
		}
		defer response.Body.Close()
		text, err := httputil.DumpResponse(response, true)
		assert.NoError(t, err)
		return response.StatusCode, passing.ReplaceAllString(strings.ReplaceAll(string(text), code, "CODE"), "")
	}

	var mu sync.Mutex
	told := map[int]map[string]bool{410: {}, 429: {}} // the different answers by status
	counts := map[int]int{}
	note := func(status int, answer string) {
		mu.Lock()
		defer mu.Unlock()
		counts[status]++
		if told[status] == nil {
			t.Errorf("%d %s", status, answer)
			told[status] = map[string]bool{}
		}
		told[status][answer] = true
	}
	curious := key("curious", "client")
	for _, code := range []string{guess(), over, early, guess(), guess()} { // while he may still ask
		status, answer := try(instances[0], curious, code)
		require.Equal(t, 410, status, answer)
		note(status, answer)
	}
	for _, code := range []string{guess(), over, real} { // a hit does not get through either
		status, answer := try(instances[0], curious, code)
		require.Equal(t, 429, status, answer)
		note(status, answer)
	}
	began := time.Now()
	var group sync.WaitGroup
	for g := range guessers {
		key := key("guesser"+strconv.Itoa(g), "client")
		for w := range workers {
			group.Go(func() {
				for n := range guesses / guessers / workers {
					code := guess()
					if n%100 == 0 {
						code = []string{over, early}[n/100%2]
					}
					note(try(instances[w%len(instances)], key, code))
				}
			})
		}
	}
	group.Wait()
	windows := 1 + int(time.Since(began)/time.Minute)
	t.Logf("%d guesses in %s: %v", guesses, time.Since(began), counts)
	assert.LessOrEqual(t, counts[410], limit+guessers*windows*(limit+workers), "what is under way at once is answered")
	assert.GreaterOrEqual(t, counts[429], guesses*9/10)
	for status, answers := range told {
		assert.Len(t, answers, 1, "%d", status)
	}
	status, answer := try(instances[1], honest, real)
	assert.Equal(t, 201, status, "whoever has a code uses it meanwhile: %s", answer)
}

// slow is a connection that sends a byte now and then, so that it is never idle, until it is hung up on.
type slow struct {
	net.Conn
	ended chan struct{} // closed when it was
}

// slowly opens a connection that begins so and then goes on with letters for ever.
func slowly(t *testing.T, address, begin string) *slow {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	s := &slow{conn, make(chan struct{})}
	t.Cleanup(func() { conn.Close(); <-s.ended })
	_, err = io.WriteString(conn, begin)
	require.NoError(t, err)
	go func() {
		defer close(s.ended)
		_, _ = io.Copy(io.Discard, conn) // there may be an answer before the end
	}()
	go func() {
		for {
			select {
			case <-s.ended:
				return
			case <-time.After(200 * time.Millisecond):
				_, _ = io.WriteString(conn, "a")
			}
		}
	}()
	return s
}

func (s *slow) open() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

const (
	slowHead = "POST /v1/items/lamp/reservations HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
	slowBody = "POST /v1/items/lamp/reservations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"
)

// Half of 500 slow connections never come to the end of their heads, the others to that of their bodies. Meanwhile whoever comes is
// answered. Then the slow are hung up on, those without a head before those without a body.
//
// What they cost the honest is a ratio of two times, of which the tests that run beside this one decide more than the service
// does. So it is only logged here; the long form has the machine for itself and measures with and without the slow in turn.
func TestSlowloris(t *testing.T) {
	db := postgrestest.New(t)
	i := start(t, map[string]string{"FENCEPOST_DATABASE_URL": db.ServiceURL, "FENCEPOST_AUTH": "off", "FENCEPOST_DRAIN_DELAY": "0s"})
	requests, rounds := 100, 1
	if *soak {
		requests, rounds = 1000, 9
	}
	p99 := func() time.Duration {
		transport := &http.Transport{DisableKeepAlives: true} // each has to get in
		var took []time.Duration
		for range requests {
			r, err := http.NewRequestWithContext(t.Context(), "GET", i.url+"/v1/items", nil)
			require.NoError(t, err)
			began := time.Now()
			response, err := transport.RoundTrip(r)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, response.Body)
			require.NoError(t, err)
			response.Body.Close()
			took = append(took, time.Since(began))
			require.Equal(t, 200, response.StatusCode)
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	open := func(begin string) (all []*slow) {
		for range 250 {
			all = append(all, slowly(t, strings.TrimPrefix(i.url, "http://"), begin))
		}
		return all
	}
	var ratios []float64
	for len(ratios) < rounds {
		alone := p99()
		bodies, heads := open(slowBody), open(slowHead)
		beside := p99()
		for _, s := range slices.Concat(bodies, heads) {
			require.True(t, s.open(), "the honest are answered while all of the slow are there")
		}
		for _, s := range heads {
			select {
			case <-s.ended:
			case <-bodies[0].ended: // it came first
				t.Fatal("a connection without a head is kept for as long as one without a body")
			}
		}
		for _, s := range bodies {
			select {
			case <-s.ended:
			case <-time.After(time.Minute):
				t.Fatal("a connection without a body is kept")
			}
		}
		ratios = append(ratios, float64(beside)/float64(alone))
		t.Logf("p99 alone %s, beside 500 slow connections %s", alone, beside)
	}
	slices.Sort(ratios)
	t.Logf("%.2f times, the median of %d rounds", ratios[rounds/2], rounds)
	if *soak {
		assert.Less(t, ratios[rounds/2], 2.0)
	}
}

// When the slow have all connections there are, an honest client gets one as soon as they are hung up on. The negative control
// is the same server without its time-outs: there he still waits by then, until they leave of their own accord.
func TestSlowClientsDoNotKeepAllConnections(t *testing.T) {
	t.Parallel()
	const connections = 8
	besieged := func(change func(*http.Server)) (all []*slow, answered chan error) {
		server := newServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }), slog.New(slog.DiscardHandler))
		change(server)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() { _ = server.Serve(netutil.LimitListener(listener, connections)) }()
		t.Cleanup(func() { server.Close() })
		for n := range connections {
			all = append(all, slowly(t, listener.Addr().String(), []string{slowHead, slowBody}[n%2]))
		}
		r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+listener.Addr().String(), nil)
		require.NoError(t, err)
		answered = make(chan error, 1)
		go func() {
			response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
			if err == nil {
				response.Body.Close()
			}
			answered <- err
		}()
		return all, answered
	}
	control, waiting := besieged(func(s *http.Server) { s.ReadHeaderTimeout, s.ReadTimeout = 0, 0 })
	_, answered := besieged(func(*http.Server) {})
	require.NoError(t, <-answered)
	require.Empty(t, waiting)
	for _, s := range control {
		require.True(t, s.open())
		s.Close()
	}
	require.NoError(t, <-waiting)
}
