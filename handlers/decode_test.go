package handlers_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
)

// posts are the routes that read a body, each with a good one.
var posts = []struct {
	path, good                  string
	number, text                string // a field of that type, if the route has one
	status                      int
	requiredInTheOrderOfAnswers []string
}{
	{"/v1/items", `{"sku":"vase","name":"Vase","stock":3}`, "stock", "name", 201, []string{"sku", "name", "stock"}},
	{"/v1/items/lamp/restocks", `{"quantity":3}`, "quantity", "", 200, []string{"quantity"}},
	{"/v1/items/lamp/reservations", `{"quantity":3}`, "quantity", "customer_id", 201, []string{"quantity"}},
	{"/v1/orders", `{"lines":[{"sku":"lamp","quantity":3}]}`, "", "customer_id", 201, []string{"lines"}},
	{"/v1/coupons", `{"code":"NEW","max_redemptions":3}`, "max_redemptions", "code", 201, []string{"max_redemptions"}},
	{"/v1/coupons/TEN/redemptions", `{"customer_id":"c"}`, "", "customer_id", 201, []string{"customer_id"}},
}

func TestBodiesThatEveryRouteRefuses(t *testing.T) {
	t.Parallel()
	type body struct {
		name, text string
		status     int
		field      string // "": do not look
	}
	for _, post := range posts {
		bodies := []body{
			{"empty", " ", 400, ""},
			{"not JSON", "quantity=1", 400, ""},
			{"cut off", post.good[:len(post.good)-1], 400, ""},
			{"trailing data", post.good + post.good, 400, ""},
			{"trailing comma", post.good[:len(post.good)-1] + ",}", 400, ""},
			{"not UTF-8", `{"quantity":"` + "\xff" + `"}`, 400, ""},
			{"deeply nested", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), 400, ""},
			{"NaN", `{"quantity":NaN}`, 400, ""},
			{"hexadecimal", `{"quantity":0x10}`, 400, ""},
			{"too large", `{"quantity":1` + strings.Repeat(" ", 64<<10) + `}`, 413, ""},
			{"null", `null`, 422, "body"},
			{"array", `[` + post.good + `]`, 422, "body"},
			{"string", `"x"`, 422, "body"},
			{"number", `1`, 422, "body"},
			{"unknown field", post.good[:len(post.good)-1] + `,"token":"99"}`, 422, "token"},
			{"empty object", `{}`, 422, post.requiredInTheOrderOfAnswers[0]},
		}
		for _, field := range post.requiredInTheOrderOfAnswers {
			bodies = append(
				bodies,
				body{"null " + field, replaceField(post.good, field, "null"), 422, field},
				body{"object for " + field, replaceField(post.good, field, "{}"), 422, field},
				body{"array for " + field, replaceField(post.good, field, "[1]"), 422, strings.Replace(field, "lines", "lines[0]", 1)},
				body{"true for " + field, replaceField(post.good, field, "true"), 422, field},
				body{"missing " + field, strings.Replace(strings.Replace(replaceField(post.good, field, "@"), `"`+field+`":@,`, "", 1), `,"`+field+`":@`, "", 1), 422, field},
				body{"twice " + field, `{` + member(post.good, field) + `,` + post.good[1:], 422, field},
				body{"twice, once in escapes, " + field, `{` + escaped(member(post.good, field)) + `,` + post.good[1:], 422, field},
				body{"upper case " + field, strings.Replace(post.good, field, strings.ToUpper(field), 1), 422, strings.ToUpper(field)},
			)
		}
		if post.number != "" {
			for _, n := range []string{
				`"1"`, "1.5", "1.0", "1e2", "-1", "9223372036854775808", "-9223372036854775809", "1e400",
				"9223372036854775807", "18446744073709551617", "1000000001",
			} {
				bodies = append(bodies, body{"number " + n, replaceField(post.good, post.number, n), 422, post.number})
			}
		}
		if post.text != "" && post.text != post.number {
			for _, s := range []string{`1`, `"a\u0000b"`, `"a\nb"`, `"\ud800"`, `"` + strings.Repeat("x", 201) + `"`} {
				bodies = append(bodies, body{"text " + s[:min(len(s), 12)], setField(post.good, post.text, s), 422, post.text})
			}
		}
		for _, b := range bodies {
			if strings.HasPrefix(b.name, "missing") && len(post.requiredInTheOrderOfAnswers) == 1 {
				continue // the empty object
			}
			t.Run(post.path+" "+b.name, func(t *testing.T) {
				t.Parallel()
				m := newMemory()
				w := call(newHandler(m), "POST", post.path, b.text)
				p := problemOf(t, w)
				assert.Equal(t, b.status, w.Code, "%s\n%s", b.text[:min(len(b.text), 200)], w.Body)
				switch b.status {
				case 400:
					assert.Equal(t, "malformed", p.Code)
					require.NotNil(t, p.Offset)
				case 422:
					assert.Equal(t, "invalid", p.Code)
					if b.field != "" {
						assert.Equal(t, b.field, p.Field, b.text)
					}
				}
				assert.Zero(t, m.sections, "the guard was called")
				assert.Zero(t, m.made, "something was made")
			})
		}
		t.Run(post.path+" content types", func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			h := newHandler(m)
			for _, contentType := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "application/json, text/html", "application/"} {
				w := call(h, "POST", post.path, post.good, "Content-Type", contentType)
				assert.Equal(t, "unsupported_media_type", problemOf(t, w).Code, contentType)
			}
			for _, coding := range []string{"gzip", "GZIP", "deflate", "br", "identity, gzip", "gzip, identity", "nonsense"} {
				w := call(h, "POST", post.path, post.good, "Content-Encoding", coding)
				p := problemOf(t, w)
				assert.Equal(t, 415, w.Code, coding)
				assert.Contains(t, p.Detail, "Content-Encoding", coding)
				assert.Equal(t, "identity", w.Header().Get("Accept-Encoding"))
			}
			assert.Zero(t, m.sections+m.made)
			assert.Equal(t, post.status, call(h, "POST", post.path, post.good, "Content-Type", "Application/JSON; Charset=UTF-8").Code)
			h = newHandler(newMemory())
			assert.Equal(t, post.status, call(h, "POST", post.path, post.good, "Content-Encoding", "Identity").Code)
		})
	}
}

// member is the "name":value of a field in an object without spaces.
func member(object, field string) string {
	name := fmt.Sprintf("%q:", field)
	_, behind, _ := strings.Cut(object, name)
	var value json.RawMessage
	if err := json.NewDecoder(strings.NewReader(behind)).Decode(&value); err != nil {
		panic(err)
	}
	return name + string(value)
}

func replaceField(object, field, value string) string {
	return strings.Replace(object, member(object, field), fmt.Sprintf("%q:%s", field, value), 1)
}

func setField(object, field, value string) string {
	if strings.Contains(object, `"`+field+`":`) {
		return replaceField(object, field, value)
	}
	return object[:len(object)-1] + fmt.Sprintf(",%q:%s}", field, value)
}

// escaped writes the first letter of a member's name as an escape, which JSON takes for the same name.
func escaped(member string) string { return fmt.Sprintf(`"\u%04x%s`, member[1], member[2:]) }

func TestBodiesThatOneRouteRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, body, field string }{
		{"/v1/items/lamp/reservations", `{"quantity":0}`, "quantity"},
		{"/v1/items/lamp/reservations", `{"quantity":101}`, "quantity"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":0}`, "ttl_seconds"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":-60}`, "ttl_seconds"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":86401}`, "ttl_seconds"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":9223372037}`, "ttl_seconds"},  // a negative Duration
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":18446744074}`, "ttl_seconds"}, // half a second again
		{"/v1/items/lamp/reservations", `{"quantity":1,"ttl_seconds":null}`, "ttl_seconds"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"customer_id":7}`, "customer_id"},
		{"/v1/items/lamp/reservations", `{"quantity":1,"customer_id":null}`, "customer_id"},
		{"/v1/items/lamp/restocks", `{"quantity":0}`, "quantity"},
		{"/v1/items", `{"sku":"a/b","name":"n","stock":1}`, "sku"},
		{"/v1/items", `{"sku":"a","name":"","stock":1}`, "name"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":null}`, "lock"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":[]}`, "lock"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":"redis"}`, "lock"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"strategy":""}}`, "lock.strategy"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"strategy":"paxos"}}`, "lock.strategy"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"strategy":1}}`, "lock.strategy"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"fencing":"maybe"}}`, "lock.fencing"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"fencing":null}}`, "lock.fencing"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"fencing":"off","fencing":"off"}}`, "lock.fencing"},
		{"/v1/items", `{"sku":"a","name":"n","stock":1,"lock":{"token":"1"}}`, "lock.token"},
		{"/v1/coupons", `{"code":"a b","max_redemptions":1}`, "code"},
		{"/v1/coupons", `{"code":"A","max_redemptions":0}`, "max_redemptions"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"per_customer_limit":0}`, "per_customer_limit"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"per_customer_limit":-1}`, "per_customer_limit"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_from":0}`, "valid_from"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_from":"0001-01-01T00:00:00Z"}`, "valid_from"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_until":"0001-01-01T00:00:00Z"}`, "valid_until"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_until":"tomorrow"}`, "valid_until"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_until":"2026-02-30T00:00:00Z"}`, "valid_until"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_until":"99999-01-01T00:00:00Z"}`, "valid_until"},
		{"/v1/coupons", `{"code":"A","max_redemptions":1,"valid_from":"2026-02-02T00:00:00Z","valid_until":"2026-02-01T00:00:00Z"}`, "valid_until"},
		{"/v1/coupons/TEN/redemptions", `{"customer_id":""}`, "customer_id"},
		{"/v1/coupons/TEN/redemptions", `{"customer_id":"c","reservation_id":""}`, "reservation_id"},
		{"/v1/coupons/TEN/redemptions", `{"customer_id":"c","reservation_id":"rsv_unknown"}`, "reservation_id"},
		{"/v1/reservations/rsv_1/confirm", `{"quantity":1}`, "quantity"},
		{"/v1/reservations/rsv_1/release", `{"quantity":1}`, "quantity"},
		{"/v1/redemptions/rdm_1/rollback", `[]`, "body"},
	} {
		t.Run(tt.path+" "+tt.body, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			w := call(newHandler(m), "POST", tt.path, tt.body)
			p := problemOf(t, w)
			assert.Equal(t, 422, w.Code)
			assert.Equal(t, tt.field, p.Field)
			assert.Contains(t, p.Detail, tt.field+" must")
			assert.Zero(t, m.sections+m.made)
		})
	}
}

// An answer is no place for whatever a client has sent.
func TestNamesThatAreShown(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 60000)
	for name, want := range map[string]string{
		"tokne":              "tokne",
		"Content-Type":       "Content-Type",
		"":                   `""`,
		"a b":                `"a b"`,
		"a\r\nSet-Cookie: b": `"a\r\nSet-Cookie: b"`,
		"\u202egnp":          `"\u202egnp"`,
		`x" must be kept`:    `"x\" must be kept"`,
		long:                 `"` + long[:64] + `"`,
	} {
		key, err := json.Marshal(name)
		require.NoError(t, err)
		h := newHandler(newMemory())
		for prefix, body := range map[string]string{
			"":      fmt.Sprintf(`{%s:1}`, key),
			"lock.": fmt.Sprintf(`{"lock":{%s:1}}`, key),
		} {
			p := problemOf(t, call(h, "POST", "/v1/items", body))
			assert.Equal(t, prefix+want, p.Field)
			assert.Equal(t, prefix+want+" must be left out: there is no such field", p.Detail)
		}
		p := problemOf(t, call(h, "GET", "/v1/audit?"+url.QueryEscape(name)+"=1", ""))
		assert.Equal(t, want, p.Field)
		assert.Equal(t, want+" must be left out: there is no such parameter", p.Detail)
	}
}

func TestOffsetOfMalformedBody(t *testing.T) {
	t.Parallel()
	for body, offset := range map[string]int64{
		`{"quantity":x}`:                  13,
		" ":                               1,
		"{\"quantity\":1, \"\xff\":\"\"}": 16,
	} {
		p := problemOf(t, call(newHandler(newMemory()), "POST", "/v1/items/lamp/reservations", body))
		require.NotNil(t, p.Offset)
		assert.Equal(t, offset, *p.Offset, body)
	}
}

// exchange sends text to a real server and returns the answer. The recorder of the other tests knows neither slow bodies nor
// chunks.
func exchange(t *testing.T, m *memory, text string) *http.Response {
	t.Helper()
	return exchangeWithin(t, m, 0, text, false)
}

// exchangeWithin has a server that waits for so long, and says that nothing more will come if end is set.
func exchangeWithin(t *testing.T, m *memory, timeout time.Duration, text string, end bool) *http.Response {
	t.Helper()
	server := httptest.NewUnstartedServer(newHandler(m))
	server.Config.ReadTimeout = timeout
	server.Start()
	t.Cleanup(server.Close)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	if end {
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	return response
}

const (
	reserveHead = "POST /v1/items/lamp/reservations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	confirmHead = "POST /v1/reservations/rsv_1/confirm HTTP/1.1\r\nHost: localhost\r\n"
)

func TestBodiesThatDoNotComeToTheirEnd(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text string
		end  bool
	}{
		"slow":             {reserveHead + "Content-Length: 14\r\n\r\n{\"quan", false},
		"none":             {reserveHead + "Content-Length: 14\r\n\r\n", false},
		"short":            {reserveHead + "Content-Length: 14\r\n\r\n{\"quan", true},
		"slow in chunks":   {reserveHead + "Transfer-Encoding: chunked\r\n\r\n6\r\n{\"quan", false},
		"no last chunk":    {reserveHead + "Transfer-Encoding: chunked\r\n\r\ne\r\n{\"quantity\":1}\r\n", true},
		"slow, not needed": {confirmHead + "Content-Length: 2\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory()
			response := exchangeWithin(t, m, time.Second, tt.text, tt.end)
			assert.Equal(t, 408, response.StatusCode)
			assert.True(t, response.Close || tt.end, "what comes late must not be taken for the next request")
			var p problem
			require.NoError(t, json.NewDecoder(response.Body).Decode(&p))
			assert.Equal(t, "request_timeout", p.Code)
			assert.True(t, p.Retryable)
			assert.Zero(t, m.sections+m.made)
		})
	}
}

func TestChunksThatAreNone(t *testing.T) {
	t.Parallel()
	response := exchange(t, newMemory(), reserveHead+"Transfer-Encoding: chunked\r\n\r\nquantity=1\r\n")
	assert.Equal(t, 400, response.StatusCode)
}

func TestEmptyBodyInChunks(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		confirmHead + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		confirmHead + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
	} {
		m := newMemory()
		m.items["lamp"] = domain.Item{SKU: "lamp", OnHand: 10, Reserved: 1}
		assert.Equal(t, 200, exchange(t, m, text).StatusCode, text)
	}
	m := newMemory()
	assert.Equal(t, 415, exchange(t, m, confirmHead+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n").StatusCode)
	assert.Equal(t, 415, exchange(t, m, confirmHead+"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}").StatusCode)
	assert.Zero(t, m.sections)
}

// A body in chunks does not say how long it is.
func TestTooLargeBodyInChunks(t *testing.T) {
	t.Parallel()
	for size, status := range map[int]int{64<<10 - 2: 200, 64<<10 - 1: 413} {
		m := newMemory()
		m.items["lamp"] = domain.Item{SKU: "lamp", OnHand: 10, Reserved: 1}
		head := confirmHead + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
		body := "{}" + strings.Repeat(" ", size)
		assert.Equal(t, status, exchange(t, m, fmt.Sprintf("%s%x\r\n%s\r\n0\r\n\r\n", head, len(body), body)).StatusCode, "%d", size)
		assert.Equal(t, status == 200, m.sections == 1)
	}
}

// A client that asks first is spared the sending.
func TestTooLargeBodyIsRefusedBeforeItIsSent(t *testing.T) {
	t.Parallel()
	for _, head := range []string{reserveHead, confirmHead} {
		response := exchange(t, newMemory(), head+"Expect: 100-continue\r\nContent-Length: 65537\r\n\r\n")
		assert.Equal(t, 413, response.StatusCode)
	}
	response := exchange(t, newMemory(), reserveHead+"Expect: 100-continue\r\nContent-Length: 65536\r\n\r\n")
	assert.Equal(t, 100, response.StatusCode, "as large as is allowed")
}

func FuzzBodies(f *testing.F) {
	for _, post := range posts {
		f.Add(post.path, post.good)
	}
	f.Add("/v1/items", `{"lock":{"strategy":"a","strategy":"b"}}`)
	f.Add("/v1/orders", `{"lines":[{"sku":"lamp","quantity":1},null,[]],"coupon":"TEN"}`)
	paths := map[string]bool{}
	for _, post := range posts {
		paths[post.path] = true
	}
	for _, path := range []string{"/v1/reservations/rsv_1/confirm", "/v1/reservations/rsv_1/release", "/v1/redemptions/rdm_1/rollback"} {
		paths[path] = true
		f.Add(path, `{}`)
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		if paths[path] {
			w := call(newHandler(newMemory()), "POST", path, body)
			assert.Less(t, w.Code, 500, "%s %q: %s", path, body, w.Body)
		}
	})
}

// Without a code the service makes one. What is there in its place must be a code.
func TestCouponWithoutACode(t *testing.T) {
	t.Parallel()
	w := call(newHandler(newMemory()), "POST", "/v1/coupons", `{"max_redemptions":3}`)
	require.Equal(t, 201, w.Code, w.Body)
	assert.Regexp(t, `^/v1/coupons/\w{4}-\w{4}-\w{4}-\w{4}$`, w.Header().Get("Location"))
	for _, code := range []string{`null`, `""`, `" "`, `1`, `{}`, `"a b"`} {
		w := call(newHandler(newMemory()), "POST", "/v1/coupons", `{"max_redemptions":3,"code":`+code+`}`)
		assert.Equal(t, "code", problemOf(t, w).Field, code)
	}
}

// No query gets further than its check, or comes back in an answer as it was.
func FuzzQueries(f *testing.F) {
	for _, query := range []string{
		"resource=item/lamp", "resource=", "resource=item/%00", "a=1;b=2", "%ZZ", "resource=item/lamp&resource=x", "<script>=1", "=", "&&", "resource=coupon/%F0%9F%98%80",
		"limit=1&cursor=lamp", "limit=-9223372036854775809", "limit=1e3", "cursor=%00", "cursor=item/lamp",
	} {
		f.Add("/v1/audit", query)
		f.Add("/v1/items", query)
		f.Add("/v1/events", "last_event_id="+url.QueryEscape(query))
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		method := map[string]string{"/v1/audit": "GET", "/v1/items": "GET", "/v1/events": "HEAD"}[path] // a stream has no end
		if method == "" {
			return
		}
		r := httptest.NewRequest(method, path, nil)
		r.URL.RawQuery = query
		r.Host = "localhost"
		w := httptest.NewRecorder()
		newHandler(newMemory()).ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 404 && w.Code != 422 {
			t.Errorf("%q: %d %s", query, w.Code, w.Body)
		}
		if w.Body.Len() > 2048 && w.Code != 200 || strings.Contains(w.Body.String(), "<script") {
			t.Errorf("%q: %s", query, w.Body)
		}
	})
}

// No name in a path gets further than its check, or comes back in an answer as it was.
func FuzzPaths(f *testing.F) {
	routes := []string{"GET /v1/items/%s", "POST /v1/reservations/%s/confirm", "GET /v1/coupons/%s", "POST /v1/redemptions/%s/rollback", "GET /%s"}
	for n := range routes {
		for _, name := range []string{"lamp", "rsv_1", "%6Camp", "%00", "..", "%2e%2e%2f", "%ZZ", "%F0%9F%98%80", "<script>", "a/b", "%2F", "."} {
			f.Add(uint8(n), name)
		}
	}
	f.Fuzz(func(t *testing.T, route uint8, name string) {
		method, path, _ := strings.Cut(fmt.Sprintf(routes[int(route)%len(routes)], name), " ")
		u, err := url.ParseRequestURI(path)
		if err != nil || strings.ContainsAny(path, "?#") { // net/http answers the first, and the others are no paths
			return
		}
		r := httptest.NewRequest(method, "/", nil)
		r.URL, r.RequestURI, r.Host = u, path, "localhost"
		w := httptest.NewRecorder()
		newHandler(newMemory()).ServeHTTP(w, r)
		if w.Code >= 500 || strings.Contains(w.Body.String(), "<script") {
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
	})
}

// Whatever stands in a header that is read, it is a mistake of the client's at the most, and none of it gets into a header of the
// answer that was not meant to.
func FuzzHeaders(f *testing.F) {
	names := []string{"Idempotency-Key", "If-Match", "If-None-Match", "Authorization", "X-Request-Id", "Content-Type", "Last-Event-Id", "Origin", "Host"}
	for n := range names {
		for _, value := range []string{"", "*", "order-4711", `"order-4711"`, `W/"x",*`, "Bearer " + shopKey, "a\r\nSet-Cookie: a=b", "null", "http://127.0.0.1:8081", strings.Repeat("x", 300)} {
			f.Add(uint8(n), value)
		}
	}
	requestID := regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)
	f.Fuzz(func(t *testing.T, name uint8, value string) {
		header := names[int(name)%len(names)]
		for _, options := range [][]option{nil, {withKeys}} {
			h := newHandler(newMemory(), options...)
			for _, request := range [][3]string{
				{"POST", "/v1/items/lamp/reservations", `{"quantity":1}`},
				{"POST", "/v1/items/lamp/restocks", `{"quantity":1}`},
				{"GET", "/v1/items/lamp", ""},
				{"HEAD", "/v1/events", ""},
			} {
				w := call(h, request[0], request[1], request[2], header, value)
				if w.Code >= 500 || !requestID.MatchString(w.Header().Get("X-Request-Id")) || strings.ContainsAny(fmt.Sprint(w.Header()), "\r\n") {
					t.Errorf("%s %s: %q: %d %v %s", request[0], header, value, w.Code, w.Header(), w.Body)
				}
			}
		}
	})
}
