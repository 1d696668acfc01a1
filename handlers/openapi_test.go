package handlers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers"
	"fencepost/handlers/contracttest"
	"fencepost/handlers/observe"
)

// document is what every exchange of these tests is held to.
var document *contracttest.Document

// breaches are exchanges that the document does not tell of.
var breaches struct {
	sync.Mutex
	checked int
	found   []error
}

func TestMain(m *testing.M) {
	var err error
	if document, err = contracttest.Load(handlers.OpenAPI); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, breach := range breaches.found {
		fmt.Fprintln(os.Stderr, "against the contract:", breach)
		code = 1
	}
	os.Exit(code)
}

// checked has every exchange with the handler checked; only the files of the page are not the document's business.
func checked(h http.Handler, page map[string]http.Handler) http.Handler {
	return contracttest.Watch(h, func(ctx context.Context, e contracttest.Exchange) {
		const gone = 499 // nobody waits for that answer
		if e.Status == gone || e.Status == http.StatusOK && page[e.URL.Path] != nil {
			return
		}
		err := document.Check(ctx, e)
		breaches.Lock()
		defer breaches.Unlock()
		breaches.checked++
		if err != nil {
			breaches.found = append(breaches.found, fmt.Errorf("%s %s: %d %s: %w", e.Method, e.URL, e.Status, e.AnswerBody, err))
		}
	})
}

func TestEveryExchangeIsChecked(t *testing.T) {
	t.Parallel()
	count := func() int {
		breaches.Lock()
		defer breaches.Unlock()
		return breaches.checked
	}
	before := count()
	call(newHandler(newMemory()), "GET", "/healthz", "")
	assert.Greater(t, count(), before)
}

// operations calls each with every operation of the document, under its method and its path as echo writes it.
func operations(each func(route string, op *openapi3.Operation)) {
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			each(method+" "+strings.NewReplacer("{", ":", "}", "").Replace(path), op)
		}
	}
}

func TestRoutesAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	e, ok := handlers.New(handlers.Config{Service: &domain.Service{}, Metrics: observe.NewMetrics(handlers.Outcome), Log: slog.New(slog.DiscardHandler)}).(*echo.Echo)
	require.True(t, ok)
	var routes, documented []string
	for _, r := range e.Routes() {
		if r.Method != http.MethodHead { // of every path that answers GET
			routes = append(routes, r.Method+" "+r.Path)
		}
	}
	operations(func(route string, _ *openapi3.Operation) { documented = append(documented, route) })
	assert.ElementsMatch(t, routes, documented)
}

// The table of problems and the document know the same codes, with the same statuses.
func TestCodesAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	table := map[string][]int{} // the statuses of each code
	for _, p := range handlers.Problems() {
		table[p.Code] = append(table[p.Code], p.Status)
	}
	var listed []string
	for _, code := range document.Components.Schemas["Problem"].Value.Properties["code"].Value.Enum {
		listed = append(listed, code.(string))
	}
	var codes []string
	for code := range table {
		codes = append(codes, code)
	}
	assert.ElementsMatch(t, codes, listed)

	used := map[string]bool{"method_not_allowed": true} // it belongs to no operation
	operations(func(route string, op *openapi3.Operation) {
		for status, response := range op.Responses.Map() {
			for _, code := range contracttest.Codes(response.Value) {
				used[code] = true
				assert.Contains(t, fmt.Sprint(table[code]), status, "%s: %s", route, code)
			}
			if status >= "400" {
				assert.NotEmpty(t, contracttest.Codes(response.Value), "%s: %s has no codes", route, status)
			}
		}
	})
	for _, code := range codes {
		assert.True(t, used[code], "no operation has the code %s", code)
	}
}

// Who may use an operation is what the document says.
func TestRolesAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	operations(func(route string, op *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		h := newHandler(newMemory(), withKeys)
		if path == "/v1/instances" { // there only without keys
			h = newHandler(newMemory())
		}
		open := op.Security != nil && len(*op.Security) == 0
		assert.Equal(t, open, call(h, method, path, "").Code != http.StatusUnauthorized, route)
		admins := op.Responses.Status(http.StatusForbidden)
		forbidden := admins != nil && slices.Contains(contracttest.Codes(admins.Value), "forbidden")
		assert.Equal(t, forbidden, call(h, method, path, "", "Authorization", "Bearer "+shopKey).Code == http.StatusForbidden, route)
	})
}

// Whatever takes a key counts against the caller's quota and says so, and what is refused for it does nothing.
func TestQuotaOfEveryOperation(t *testing.T) {
	t.Parallel()
	operations(func(route string, op *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		m := newMemory()
		h := newHandler(m, withKeys, func(c *handlers.Config) {
			c.Take = func(context.Context, domain.Caller) (domain.Quota, error) {
				return domain.Quota{Limit: 2, Window: time.Minute, Reset: time.Second}, &domain.LimitedError{After: time.Second}
			}
		})
		open := op.Security != nil && len(*op.Security) == 0
		w := call(h, method, path, "", "Authorization", "Bearer "+adminKey)
		assert.Equal(t, !open, w.Code == http.StatusTooManyRequests, route)
		assert.Equal(t, !open, w.Header().Get("RateLimit") != "", route)
		assert.Zero(t, m.sections+m.made, route)
		w = call(h, method, path, "", "Authorization", "Bearer "+shopKey)
		assert.Equal(t, !open, w.Code == http.StatusTooManyRequests, "%s: also where the key is of no use", route)
	})
}

// A parameter that an operation does not know is refused before anything is done: it may be a misspelt one, or a field of the body
// in the wrong place.
func TestUnknownParameterOfEveryOperation(t *testing.T) {
	t.Parallel()
	operations(func(route string, op *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		if !strings.HasPrefix(path, "/v1/") {
			return
		}
		m := newMemory()
		p := problemOf(t, call(newHandler(m), method, path+"?ttl_seconds=5", ""))
		assert.Equal(t, "ttl_seconds", p.Field, route)
		assert.Zero(t, m.sections+m.made, route)
		assert.NotNil(t, op.Responses.Status(http.StatusUnprocessableEntity), route)
	})
}

// Every operation has examples, and what they say happens.
func TestExamplesAreTrue(t *testing.T) {
	t.Parallel()
	const id = "019ca95d-1a00-7c3e-8d1f-2a3b4c5d6e7f"
	operations(func(route string, op *openapi3.Operation) {
		method, path, _ := strings.Cut(route, " ")
		if path == "/v1/events" { // it has no end that could be waited for; its own tests read it
			return
		}
		m := newMemory()
		m.items["lamp"] = domain.Item{SKU: "lamp", Name: "Lamp", OnHand: 10, Reserved: 1}
		m.coupons["TEN"] = domain.Coupon{Code: "TEN", MaxRedemptions: 10, Redeemed: 1}
		held := m.reservations["rsv_1"]
		held.ID = "rsv_" + id
		m.reservations = map[string]domain.Reservation{held.ID: held}
		m.redemptions["rdm_"+id] = domain.Redemption{ID: "rdm_" + id, Code: "TEN", CustomerID: "zoe", State: domain.Redeemed, CreatedAt: now}
		h := newHandler(m, func(c *handlers.Config) {
			c.Service.NewID = func() string { return id }
			c.Strategies = func(context.Context) ([]domain.StrategyStatus, error) {
				return []domain.StrategyStatus{
					{
						Name: "redis", Summary: "a lease in one Redis", Fences: true, Available: true, Server: "127.0.0.1:6379", Resources: 2,
						InCharge: []domain.Authority{{Scope: domain.ScopeInventory, Epoch: 3, Since: now}},
					},
					{Name: "none", Summary: "no lock at all", Problem: "needs FENCEPOST_FENCING=off"},
				}, nil
			}
		})

		item := document.Paths.Value(strings.NewReplacer(":sku", "{sku}", ":id", "{id}", ":code", "{code}").Replace(path))
		query := url.Values{}
		for _, p := range slices.Concat(item.Parameters, op.Parameters) {
			if p.Value.In == "path" {
				path = strings.Replace(path, ":"+p.Value.Name, p.Value.Example.(string), 1)
			} else if p.Value.Example != nil {
				query.Set(p.Value.Name, p.Value.Example.(string))
			}
		}
		var body []byte
		if op.RequestBody != nil && op.RequestBody.Value.Required {
			var err error
			body, err = json.Marshal(op.RequestBody.Value.Content.Get("application/json").Example)
			require.NoError(t, err)
			require.NotEqual(t, "null", string(body), "%s has no example", route)
		}
		w := call(h, method, path+"?"+query.Encode(), string(body))
		response := op.Responses.Status(w.Code)
		require.NotNil(t, response, "%s: %d %s", route, w.Code, w.Body)
		require.Less(t, w.Code, 300, "%s: %s", route, w.Body)
		if content := response.Value.Content.Get("application/json"); content != nil {
			want, err := json.Marshal(content.Example)
			require.NoError(t, err)
			assert.JSONEq(t, string(want), w.Body.String(), route)
		}
	})
}

// An answer that the document does not tell of is found: otherwise it would mean nothing that none is.
func TestAnswersAgainstTheContractAreFound(t *testing.T) {
	t.Parallel()
	good := func() contracttest.Exchange {
		return contracttest.Exchange{
			Method: "POST", URL: &url.URL{Path: "/v1/items/lamp/restocks"}, Header: http.Header{"Content-Type": {"application/json"}},
			Body:   []byte(`{"quantity":1}`),
			Status: 200, Answer: http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"12345678"}},
			AnswerBody: []byte(`{"sku":"lamp","name":"Lamp","on_hand":1,"reserved":0,"available":1,"sold":0}`),
		}
	}
	require.NoError(t, document.Check(t.Context(), good()))
	refused := func(e *contracttest.Exchange, status int, code string) {
		e.Status = status
		e.Answer.Set("Content-Type", "application/problem+json")
		e.AnswerBody = fmt.Appendf(nil, `{"type":"urn:fencepost:problem:%s","title":"t","status":%d,"detail":"d","instance":"/","code":%q,"retryable":false,"request_id":"12345678"}`, code, status, code)
	}
	fine := good()
	refused(&fine, 412, "precondition_failed")
	require.NoError(t, document.Check(t.Context(), fine))
	for what, spoil := range map[string]func(*contracttest.Exchange){
		"another status": func(e *contracttest.Exchange) { e.Status = 202 },
		"a status that is not looked at by the filter": func(e *contracttest.Exchange) { e.Status, e.AnswerBody = 304, nil },
		"another type":              func(e *contracttest.Exchange) { e.Answer.Set("Content-Type", "text/plain") },
		"an unknown header":         func(e *contracttest.Exchange) { e.Answer.Set("X-Secret", "1") },
		"a missing header":          func(e *contracttest.Exchange) { e.Answer.Del("X-Request-Id") },
		"a header of another shape": func(e *contracttest.Exchange) { e.Answer.Set("Fencepost-Token", "7") },
		"a missing field":           func(e *contracttest.Exchange) { e.AnswerBody = []byte(`{"sku":"lamp"}`) },
		"an unknown field": func(e *contracttest.Exchange) {
			e.AnswerBody = append(e.AnswerBody[:len(e.AnswerBody)-1], `,"x":1}`...)
		},
		"text for a number": func(e *contracttest.Exchange) {
			e.AnswerBody = []byte(strings.Replace(string(e.AnswerBody), "1", `"1"`, 1))
		},
		"no JSON":                     func(e *contracttest.Exchange) { e.AnswerBody = []byte("ok") },
		"another operation's code":    func(e *contracttest.Exchange) { refused(e, 409, "out_of_stock") },
		"a code with another status":  func(e *contracttest.Exchange) { refused(e, 409, "precondition_failed") },
		"an unknown code":             func(e *contracttest.Exchange) { refused(e, 409, "bad_luck") },
		"a request that was accepted": func(e *contracttest.Exchange) { e.Body = []byte(`{"quantity":0}`) },
		"an unknown path":             func(e *contracttest.Exchange) { e.URL.Path = "/v1/unknown" },
		"an unknown method":           func(e *contracttest.Exchange) { e.Method = "PUT" },
	} {
		e := good()
		spoil(&e)
		assert.Error(t, document.Check(t.Context(), e), what)
	}
}
