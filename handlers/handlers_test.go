package handlers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
	"fencepost/handlers/observe"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// memory is a store and a guard in one: a map under a mutex. err, if set, is what every section ends with.
type memory struct {
	mu           sync.Mutex
	items        map[string]domain.Item
	coupons      map[string]domain.Coupon
	reservations map[string]domain.Reservation
	redemptions  map[string]domain.Redemption

	answers        map[string]kept // by caller and key
	sections, made int             // calls that would have changed something
	err            error
	during         func(context.Context) // runs inside each section
	token          domain.Token
	rowLock        bool // the token is a row's
}

func newMemory() *memory {
	return &memory{
		items:        map[string]domain.Item{"lamp": {SKU: "lamp", Name: "Lamp", OnHand: 10}},
		coupons:      map[string]domain.Coupon{"TEN": {Code: "TEN", MaxRedemptions: 10}, "OVER": {Code: "OVER", MaxRedemptions: 1, ValidUntil: now.Add(-time.Hour)}},
		reservations: map[string]domain.Reservation{"rsv_1": {ID: "rsv_1", State: domain.Held, Lines: []domain.Line{{SKU: "lamp", Quantity: 1}}, CreatedBy: "shop", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}},
		redemptions:  map[string]domain.Redemption{"rdm_1": {ID: "rdm_1", Code: "TEN", CustomerID: "c", State: domain.Redeemed, CreatedBy: "shop", CreatedAt: now}},
		answers:      map[string]kept{},
		token:        7,
	}
}

// kept is an answer to a request with an Idempotency-Key.
type kept struct {
	fingerprint [32]byte
	answer      domain.Answer
}

// once does what a store does about the key of a request.
func (m *memory) once(o *domain.Once, work func() (any, error)) error {
	if o == nil {
		_, err := work()
		return err
	}
	if before, known := m.answers[o.Caller+" "+o.Key]; known {
		if before.fingerprint != o.Fingerprint {
			return domain.ErrKeyReused
		}
		return &domain.Replay{Answer: before.answer}
	}
	result, err := work()
	if err == nil || domain.Final(err) {
		m.answers[o.Caller+" "+o.Key] = kept{o.Fingerprint, o.Encode(result, err)}
	}
	return err
}

func (m *memory) Do(ctx context.Context, section domain.Section) (domain.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sections++
	if m.during != nil {
		m.during(ctx)
	}
	receipt := domain.Receipt{
		Grants:   []domain.Grant{{Key: section.Keys[0], Strategy: "redis", Epoch: 3, Token: m.token, RowLock: m.rowLock}},
		LockWait: 1500 * time.Microsecond, Database: 250 * time.Microsecond,
	}
	if m.err != nil {
		return receipt, m.err
	}
	return receipt, m.once(section.Once, func() (any, error) {
		err := section.Run(ctx, unit{m})
		return section.Result(), err
	})
}

func (m *memory) Spec(_ context.Context, _ domain.Kind, strategy string, fencing domain.Fencing) (domain.LockSpec, error) {
	if strategy != "" && strategy != "redis" {
		return domain.LockSpec{}, domain.Invalid("lock.strategy", "must be one of redis")
	}
	return domain.LockSpec{Strategy: strategy, Fencing: fencing}, nil
}

// unit is a memory seen as a transaction. Nothing is rolled back: no test needs it.
type unit struct{ *memory }

func find[T any](m map[string]T, name string) (T, error) {
	v, ok := m[name]
	if !ok {
		return v, fmt.Errorf("%q: %w", name, domain.ErrNotFound)
	}
	return v, nil
}

func (u unit) Slow(ctx context.Context, step func(context.Context) error) error { return step(ctx) }

func (u unit) Item(_ context.Context, sku string) (domain.Item, error) { return find(u.items, sku) }
func (u unit) PutItem(i domain.Item, _ domain.Entry)                   { u.items[i.SKU] = i }
func (u unit) Reservation(_ context.Context, id string) (domain.Reservation, error) {
	return find(u.reservations, id)
}
func (u unit) PutReservation(r domain.Reservation) { u.reservations[r.ID] = r }
func (u unit) Coupon(_ context.Context, code string) (domain.Coupon, error) {
	return find(u.coupons, code)
}
func (u unit) PutCoupon(c domain.Coupon, _ domain.Entry) { u.coupons[c.Code] = c }
func (u unit) CustomerUses(_ context.Context, code, customer string) (n int64, err error) {
	for _, r := range u.redemptions {
		if r.Code == code && r.CustomerID == customer && r.State == domain.Redeemed {
			n++
		}
	}
	return n, nil
}

func (u unit) Redemption(_ context.Context, id string) (domain.Redemption, error) {
	return find(u.redemptions, id)
}
func (u unit) PutRedemption(r domain.Redemption) { u.redemptions[r.ID] = r }

var fence = domain.Fence{Strategy: "redis", Fencing: domain.FencingEnforced, Epoch: 3, Token: 9007199254740993}

func (m *memory) Items(_ context.Context, after domain.Key, limit int64) (views []domain.ItemView, _ error) {
	for _, sku := range slices.Sorted(maps.Keys(m.items)) {
		if domain.ItemKey(sku) > after && int64(len(views)) < limit {
			views = append(views, domain.ItemView{Item: m.items[sku], Fence: fence})
		}
	}
	return views, nil
}

func (m *memory) Item(_ context.Context, sku string) (domain.ItemView, error) {
	i, err := find(m.items, sku)
	return domain.ItemView{Item: i, Fence: fence}, err
}

func (m *memory) Coupon(_ context.Context, code string) (domain.CouponView, error) {
	c, err := find(m.coupons, code)
	return domain.CouponView{Coupon: c, Fence: fence}, err
}

func (m *memory) Reservation(_ context.Context, id string) (domain.Reservation, error) {
	return find(m.reservations, id)
}

func (m *memory) Redemption(_ context.Context, id string) (domain.Redemption, error) {
	return find(m.redemptions, id)
}

func (m *memory) CreateItem(_ context.Context, i domain.Item, _ domain.LockSpec, once *domain.Once) (domain.ItemView, error) {
	m.made++
	if m.err != nil {
		return domain.ItemView{}, m.err
	}
	view := domain.ItemView{Item: i, Fence: fence}
	return view, m.once(once, func() (any, error) {
		if _, ok := m.items[i.SKU]; ok {
			return nil, fmt.Errorf("item %q: %w", i.SKU, domain.ErrAlreadyExists)
		}
		m.items[i.SKU] = i
		return view, nil
	})
}

func (m *memory) CreateCoupon(_ context.Context, c domain.Coupon, _ domain.LockSpec, once *domain.Once) (domain.CouponView, error) {
	m.made++
	view := domain.CouponView{Coupon: c, Fence: fence}
	return view, m.once(once, func() (any, error) {
		m.coupons[c.Code] = c
		return view, nil
	})
}

var audited = map[domain.Key]domain.AuditRow{
	"item/lamp":  {Key: "item/lamp", Limit: 10, Sold: 4, Strategy: "redis", Fencing: domain.FencingEnforced, LastEpoch: 3, LastToken: 7},
	"item/raced": {Key: "item/raced", Limit: 10, Sold: 12, Oversold: 2, Strategy: "none", Fencing: domain.FencingOff},
}

func (m *memory) Resources(_ context.Context, after domain.Key, limit int64) (keys []domain.Key, _ error) {
	for _, key := range slices.Sorted(maps.Keys(audited)) {
		if key > after && int64(len(keys)) < limit {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func (m *memory) Audit(_ context.Context, keys ...domain.Key) (rows []domain.AuditRow, _ error) {
	for _, key := range keys {
		row, ok := audited[key]
		if !ok {
			return nil, fmt.Errorf("%s: %w", key, domain.ErrNotFound)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// keys of the callers in tests with authentication.
const (
	shopKey  = "fp_shop"
	otherKey = "fp_other"
	adminKey = "fp_admin"
)

type option func(*handlers.Config)

func withKeys(c *handlers.Config) {
	c.Authenticate = func(_ context.Context, key string) (domain.Caller, error) {
		switch key {
		case shopKey:
			return domain.Caller{ID: "shop"}, nil
		case otherKey:
			return domain.Caller{ID: "other"}, nil
		case adminKey:
			return domain.Caller{ID: "boss", Admin: true}, nil
		case "fp_database_down":
			return domain.Caller{}, &domain.UnavailableError{Server: "PostgreSQL", Err: errors.New("dial tcp 10.0.0.7: refused")}
		}
		return domain.Caller{}, fmt.Errorf("key: %w", domain.ErrNotFound)
	}
}

func newConfig(m *memory, options ...option) handlers.Config {
	c := handlers.Config{
		Service: &domain.Service{
			Guard: m, Store: m, NewID: func() string { return "0199" }, Now: func() time.Time { return now },
			HoldTTL: 10 * time.Minute, MaxTTL: 24 * time.Hour, Fencing: domain.FencingEnforced,
		},
		Strategies: func(context.Context) ([]domain.StrategyStatus, error) {
			return []domain.StrategyStatus{
				{Name: "redis", Fences: true, Available: true, Server: "127.0.0.1:6379", InCharge: []domain.Authority{{Scope: domain.ScopeInventory, Epoch: 3, Since: now}}},
				{Name: "none", Problem: "needs FENCEPOST_FENCING=off"},
			}, nil
		},
		Events:    observe.NewHub(16),
		Metrics:   observe.NewMetrics(handlers.Outcome),
		Ready:     func(context.Context) error { return nil },
		Instances: []string{"http://127.0.0.1:8081", "http://127.0.0.1:8082/"},
		Log:       slog.New(slog.DiscardHandler),
		Version:   "test",
	}
	for _, o := range options {
		o(&c)
	}
	return c
}

func newHandler(m *memory, options ...option) http.Handler {
	c := newConfig(m, options...)
	return checked(handlers.New(c), c.Page)
}

// call sends a request; headers are name, value, name, value.
func call(h http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	var r *http.Request
	if body == "" {
		r = httptest.NewRequest(method, path, nil)
	} else {
		r = httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
	}
	r.Host = "127.0.0.1:8080"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

type problem struct {
	Type, Title, Detail, Instance, Code, Field string
	Status                                     int
	Retryable                                  bool
	RequestID                                  string `json:"request_id"`
	PresentedToken                             string `json:"presented_token"`
	CurrentToken                               string `json:"current_token"`
	Offset                                     *int64
}

func problemOf(t *testing.T, w *httptest.ResponseRecorder) problem {
	t.Helper()
	var p problem
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), w.Body)
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p), w.Body)
	require.Equal(t, w.Code, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	require.NotEmpty(t, p.Instance)
	require.Equal(t, w.Header().Get("X-Request-Id"), p.RequestID)
	require.Equal(t, "urn:fencepost:problem:"+p.Code, p.Type)
	return p
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method, path, body string
		status             int
		location, want     string
	}{
		{
			"POST", "/v1/items", `{"sku":"vase","name":"Vase","stock":0,"lock":{"strategy":"redis","fencing":"off"}}`, 201, "/v1/items/vase",
			`{"sku":"vase","name":"Vase","on_hand":0,"reserved":0,"available":0,"sold":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"3","token":"9007199254740993"}}`,
		},
		{
			"GET", "/v1/items", "", 200, "",
			`{"items":[{"sku":"lamp","name":"Lamp","on_hand":10,"reserved":0,"available":10,"sold":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"3","token":"9007199254740993"}}]}`,
		},
		{
			"GET", "/v1/items/%6Camp", "", 200, "",
			`{"sku":"lamp","name":"Lamp","on_hand":10,"reserved":0,"available":10,"sold":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"3","token":"9007199254740993"}}`,
		},
		{
			"POST", "/v1/items/lamp/restocks", `{"quantity":5}`, 200, "",
			`{"sku":"lamp","name":"Lamp","on_hand":15,"reserved":0,"available":15,"sold":0}`,
		},
		{
			"POST", "/v1/items/lamp/reservations", `{"quantity":2,"customer_id":"c","ttl_seconds":60}`, 201, "/v1/reservations/rsv_0199",
			`{"id":"rsv_0199","state":"held","lines":[{"sku":"lamp","quantity":2}],"customer_id":"c","created_at":"2026-03-01T12:00:00Z","expires_at":"2026-03-01T12:01:00Z"}`,
		},
		{
			"GET", "/v1/reservations/rsv_1", "", 200, "",
			`{"id":"rsv_1","state":"held","lines":[{"sku":"lamp","quantity":1}],"customer_id":"","created_at":"2026-03-01T12:00:00Z","expires_at":"2026-03-01T13:00:00Z"}`,
		},
		{
			"POST", "/v1/coupons", `{"code":"NEW","max_redemptions":5,"per_customer_limit":1,"valid_until":"2026-04-01T02:00:00+02:00"}`, 201, "/v1/coupons/NEW",
			`{"code":"NEW","max_redemptions":5,"per_customer_limit":1,"valid_until":"2026-04-01T00:00:00Z","redeemed":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"3","token":"9007199254740993"}}`,
		},
		{
			"GET", "/v1/coupons/TEN", "", 200, "",
			`{"code":"TEN","max_redemptions":10,"redeemed":0,"strategy":"redis","fencing":"enforced","fence":{"epoch":"3","token":"9007199254740993"}}`,
		},
		{
			"POST", "/v1/coupons/TEN/redemptions", `{"customer_id":"c","reservation_id":"rsv_1"}`, 201, "",
			`{"id":"rdm_0199","code":"TEN","customer_id":"c","reservation_id":"rsv_1","state":"redeemed","created_at":"2026-03-01T12:00:00Z"}`,
		},
		{
			"GET", "/v1/strategies", "", 200, "",
			`{"strategies":[{"name":"redis","summary":"","fences":true,"available":true,"server":"127.0.0.1:6379","in_charge":[{"scope":"inventory","epoch":"3","since":"2026-03-01T12:00:00Z"}],"resources":0},
			{"name":"none","summary":"","fences":false,"available":false,"problem":"needs FENCEPOST_FENCING=off","in_charge":[],"resources":0}]}`,
		},
		{
			"GET", "/v1/audit?resource=item/lamp", "", 200, "",
			`{"ok":true,"resources":[{"resource":"item/lamp","limit":10,"sold":4,"held":0,"oversold":0,"drift":0,"refused":0,"strategy":"redis","fencing":"enforced","epoch":"3","token":"7","ok":true}]}`,
		},
		{"GET", "/v1/instances", "", 200, "", `{"instances":["http://127.0.0.1:8081","http://127.0.0.1:8082/"]}`},
		{"GET", "/healthz", "", 200, "", `{"status":"ok","version":"test"}`},
		{"GET", "/readyz", "", 200, "", `{"status":"ready"}`},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			t.Parallel()
			w := call(newHandler(newMemory()), tt.method, tt.path, tt.body)
			require.Equal(t, tt.status, w.Code, w.Body)
			assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
			assert.Equal(t, tt.location, w.Header().Get("Location"))
			assert.JSONEq(t, tt.want, w.Body.String())
		})
	}
}

func TestSettling(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, want string }{
		{"/v1/reservations/rsv_0199/confirm", `"state":"confirmed"`},
		{"/v1/reservations/rsv_0199/release", `"state":"released"`},
		{"/v1/redemptions/rdm_0199/rollback", `"state":"rolled_back"`},
	} {
		for _, body := range []string{"", "{}"} {
			h := newHandler(newMemory())
			require.Equal(t, 201, call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`).Code)
			require.Equal(t, 201, call(h, "POST", "/v1/coupons/TEN/redemptions", `{"customer_id":"c"}`).Code)
			w := call(h, "POST", tt.path, body)
			require.Equal(t, 200, w.Code, w.Body)
			assert.Contains(t, w.Body.String(), tt.want)
			assert.Contains(t, w.Body.String(), `"settled_at":"2026-03-01T12:00:00Z"`)
		}
	}
}

func TestAuditOfEverythingFailsWithOneResource(t *testing.T) {
	t.Parallel()
	h := newHandler(newMemory())
	w := call(h, "GET", "/v1/audit", "")
	require.Equal(t, 200, w.Code)
	assert.Contains(t, w.Body.String(), `{"ok":false,`)
	assert.Equal(t, 404, call(h, "GET", "/v1/audit?resource=item/unknown", "").Code)
}

func TestPages(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.items["vase"] = domain.Item{SKU: "vase", Name: "Vase"}
	h := newHandler(m)
	for list, want := range map[string][]string{"/v1/items": {"lamp", "vase"}, "/v1/audit": {"item/lamp", "item/raced"}} {
		var got []string
		for query := "?limit=1"; query != ""; {
			w := call(h, "GET", list+query, "")
			require.Equal(t, 200, w.Code, w.Body)
			var page struct {
				Items      []struct{ SKU string }
				Resources  []struct{ Resource string }
				NextCursor *string `json:"next_cursor"`
			}
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &page))
			require.Len(t, append(page.Resources, make([]struct{ Resource string }, len(page.Items))...), 1, "a page holds what was asked for")
			for _, i := range page.Items {
				got = append(got, i.SKU)
			}
			for _, r := range page.Resources {
				got = append(got, r.Resource)
			}
			query = ""
			if page.NextCursor != nil {
				query = "?limit=1&cursor=" + *page.NextCursor
			}
		}
		assert.Equal(t, want, got)
	}
	for i := range 100 {
		sku := fmt.Sprintf("sku-%d", i)
		m.items[sku] = domain.Item{SKU: sku, Name: sku}
	}
	var page struct{ Items []json.RawMessage }
	require.NoError(t, json.Unmarshal(call(h, "GET", "/v1/items", "").Body.Bytes(), &page))
	assert.Len(t, page.Items, 100, "without a limit there is one all the same")
}

func TestPagesThatAreRefused(t *testing.T) {
	t.Parallel()
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=-1": "limit", "limit=1001": "limit", "limit=ten": "limit", "limit=1.5": "limit", "limit=": "limit",
		"limit=9223372036854775808": "limit", "limit=1&limit=1": "limit", "Limit=1": "Limit",
		"cursor=": "cursor", "cursor=item/lamp": "cursor", "cursor=!": "cursor", "cursor=Ym94L2E": "cursor", "offset=1": "offset",
	} {
		for _, list := range []string{"/v1/items?", "/v1/audit?"} {
			p := problemOf(t, call(newHandler(newMemory()), "GET", list+query, ""))
			assert.Equal(t, "invalid", p.Code, query)
			assert.Equal(t, field, p.Field, query)
			assert.Contains(t, p.Detail, field+" must")
		}
	}
	p := problemOf(t, call(newHandler(newMemory()), "GET", "/v1/audit?resource=item/lamp&limit=1", ""))
	assert.Equal(t, "resource", p.Field)
}

func TestETags(t *testing.T) {
	t.Parallel()
	m := newMemory()
	h := newHandler(m)
	for path, change := range map[string]func(){
		"/v1/items/lamp":  func() { m.items["lamp"] = domain.Item{SKU: "lamp", Name: "Lamp", OnHand: 10, Reserved: 1} },
		"/v1/coupons/TEN": func() { m.coupons["TEN"] = domain.Coupon{Code: "TEN", MaxRedemptions: 10, Redeemed: 1} },
		"/v1/reservations/rsv_1": func() {
			r := m.reservations["rsv_1"]
			r.State, r.SettledAt = domain.Released, now
			m.reservations["rsv_1"] = r
		},
	} {
		w := call(h, "GET", path, "")
		tag := w.Header().Get("ETag")
		require.NotEmpty(t, tag, path)
		assert.Equal(t, tag, call(h, "GET", path, "").Header().Get("ETag"), "nothing has changed")
		for header, status := range map[string]int{
			tag: 304, "*": 304, "W/" + tag: 304, `"other", ` + tag: 304,
			`"other"`: 200, "W/": 200, "": 200, strings.Trim(tag, `"`): 200, tag[:len(tag)-2] + `"`: 200,
		} {
			w := call(h, "GET", path, "", "If-None-Match", header)
			assert.Equal(t, status, w.Code, "%s %s", path, header)
			assert.Equal(t, tag, w.Header().Get("ETag"))
			assert.Equal(t, status == 304, w.Body.Len() == 0)
		}
		change()
		w = call(h, "GET", path, "", "If-None-Match", tag)
		assert.Equal(t, 200, w.Code, path)
		assert.NotEqual(t, tag, w.Header().Get("ETag"), path)
	}
}

func TestRestockIfMatch(t *testing.T) {
	t.Parallel()
	m := newMemory()
	h := newHandler(m)
	etag := call(h, "GET", "/v1/items/lamp", "").Header().Get("ETag")
	restock := func(header string) int {
		return call(h, "POST", "/v1/items/lamp/restocks", `{"quantity":1}`, "If-Match", header).Code
	}
	for _, header := range []string{"", `"other"`, "lamp", "W/" + etag, `"` + strings.Repeat("a", 16) + `.` + etag[18:]} {
		assert.Equal(t, 412, restock(header), header)
	}
	stock, _, _ := strings.Cut(etag, ".")
	assert.Equal(t, 200, restock(stock+`.anything"`), "the fence may have moved on")
	assert.Equal(t, 412, restock(etag), "the stock has not")
	assert.EqualValues(t, 11, m.items["lamp"].OnHand)
	etag = call(h, "GET", "/v1/items/lamp", "").Header().Get("ETag")
	assert.Equal(t, 200, restock(`"other", `+etag))
	assert.Equal(t, 200, restock("*"))
	assert.Equal(t, 404, call(h, "POST", "/v1/items/ghost/restocks", `{"quantity":1}`, "If-Match", "*").Code)

	// What comes between the request and its section counts.
	etag = call(h, "GET", "/v1/items/lamp", "").Header().Get("ETag")
	m.during = func(context.Context) { m.items["lamp"] = domain.Item{SKU: "lamp", Name: "Lamp", OnHand: 1} }
	w := call(h, "POST", "/v1/items/lamp/restocks", `{"quantity":1}`, "If-Match", etag)
	assert.Equal(t, "precondition_failed", problemOf(t, w).Code)
	assert.Equal(t, "3.7", w.Header().Get("Fencepost-Token"), "it was decided under a lock")
}

func TestQueriesThatAuditRefuses(t *testing.T) {
	t.Parallel()
	for query, field := range map[string]string{
		"resource=lamp":                          "resource",
		"resource=item/%FF":                      "resource",
		"resource=item/%00":                      "resource",
		"resource=":                              "resource",
		"resource":                               "resource",
		"resource=item/lamp&resource=item/raced": "resource",
		"resource=item/lamp&resource=item/lamp":  "resource",
		"Resource=item/lamp":                     "Resource",
		"resource=item/lamp&verbose=1":           "verbose",
		"=item/lamp":                             `""`,
		"resource=item/%ZZ":                      "query",
		"resource=item/lamp;limit=1":             "query",
	} {
		p := problemOf(t, call(newHandler(newMemory()), "GET", "/v1/audit?"+query, ""))
		assert.Equal(t, "invalid", p.Code, query)
		assert.Equal(t, field, p.Field, query)
	}
}

func TestStamp(t *testing.T) {
	t.Parallel()
	m := newMemory()
	h := newHandler(m)
	w := call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	require.Equal(t, 201, w.Code)
	assert.Equal(t, "redis", w.Header().Get("Fencepost-Strategy"))
	assert.Equal(t, "3.7", w.Header().Get("Fencepost-Token"))
	assert.Equal(t, "lock;dur=1.500, db;dur=0.250", w.Header().Get("Server-Timing"))

	w = call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":50}`)
	require.Equal(t, "out_of_stock", problemOf(t, w).Code)
	assert.Equal(t, "3.7", w.Header().Get("Fencepost-Token"), "a refusal was decided under a lock as well")

	// A row issues its token anew when the transaction is rolled back, so that a refusal would show somebody else's.
	m.rowLock = true
	w = call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":50}`)
	require.Equal(t, "out_of_stock", problemOf(t, w).Code)
	assert.Equal(t, "redis", w.Header().Get("Fencepost-Strategy"))
	assert.Empty(t, w.Header().Values("Fencepost-Token"))
	w = call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, "3.7", w.Header().Get("Fencepost-Token"))

	m.token = 0
	w = call(h, "POST", "/v1/items/lamp/reservations", `{"quantity":1}`)
	assert.Equal(t, "redis", w.Header().Get("Fencepost-Strategy"))
	assert.Empty(t, w.Header().Values("Fencepost-Token"), "a strategy without tokens has none to show")
}

// Whoever tries codes must not learn from anything which of them are real.
func TestUnknownCouponLooksLikeAnExpiredOne(t *testing.T) {
	t.Parallel()
	answer := func(code string) string {
		w := call(newHandler(newMemory()), "POST", "/v1/coupons/"+code+"/redemptions", `{"customer_id":"c"}`, "X-Request-Id", "12345678")
		require.Equal(t, 410, w.Code)
		var buf bytes.Buffer
		require.NoError(t, w.Result().Write(&buf))
		return strings.ReplaceAll(buf.String(), code, "CODE")
	}
	assert.Equal(t, answer("OVER"), answer("NONE"))
	assert.Equal(t, answer("OVER"), answer("-bad"))
}
