// Package handlers is the HTTP face of Fencepost: it turns requests into calls of the use cases, and their results and
// errors into JSON. It knows neither locks nor SQL, and it is the only package that knows echo.
//
// It promises that a request is read strictly (what it does not understand it refuses, naming the field), that every error
// is answered as a problem (RFC 9457) from one table, and that no error text of a server or driver reaches a client.
package handlers

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
	"fencepost/handlers/observe"
)

// Config is what the handlers need. Service, Strategies, Ready, Events, Metrics and Log are required.
type Config struct {
	Service    *domain.Service
	Strategies func(context.Context) ([]domain.StrategyStatus, error)

	// Ready tells whether this instance can serve. The text of its error is shown to whoever asks, so it must be one line
	// that names no address and no secret.
	Ready func(context.Context) error

	// Authenticate finds the caller that a key belongs to; ErrNotFound means that the key is not valid. Without it
	// authentication is off, and every caller is an admin.
	Authenticate func(ctx context.Context, key string) (domain.Caller, error)

	// Take, if set, spends one request of the caller's, or answers a *domain.LimitedError.
	Take func(ctx context.Context, caller domain.Caller) (domain.Quota, error)

	TLS bool // the listener speaks HTTPS

	// Instances are the base URLs of all instances. A page that one of them served may call the others.
	Instances []string

	Events  *observe.Hub // what GET /v1/events streams
	Stream  Stream
	Metrics *observe.Metrics

	Demo           *Demo                   // nil outside a demonstration
	Page           map[string]http.Handler // the files of the page by their paths; everybody may GET them
	RequestTimeout time.Duration           // 0: 15 s
	MaxRequests    int                     // served at the same time under /v1, waiting for locks included; 0: 4096
	Log            *slog.Logger
	Version        string
}

type server struct {
	Config
	slots   chan struct{}
	readers readers
	origins map[string]bool // of the instances' pages
	hosts   map[string]bool // names under which the instances are called
}

// role is who may use a route.
type role int

const (
	anybody role = iota
	client       // any valid key
	admin
)

// route is one row of the table of routes.
type route struct {
	method, path string
	role         role
	handle       echo.HandlerFunc
	query        []string // the parameters it knows
}

func (s *server) routes() []route {
	routes := []route{
		{http.MethodPost, "/v1/items", admin, s.createItem, nil},
		{http.MethodGet, "/v1/items", client, s.items, []string{"cursor", "limit"}},
		{http.MethodGet, "/v1/items/:sku", client, s.item, nil},
		{http.MethodPost, "/v1/items/:sku/restocks", admin, s.restock, nil},
		{http.MethodPost, "/v1/items/:sku/reservations", client, s.reserve, nil},
		{http.MethodPost, "/v1/orders", client, s.order, nil},
		{http.MethodGet, "/v1/reservations/:id", client, s.reservation, nil},
		{http.MethodPost, "/v1/reservations/:id/confirm", client, s.confirm, nil},
		{http.MethodPost, "/v1/reservations/:id/release", client, s.release, nil},
		{http.MethodPost, "/v1/coupons", admin, s.createCoupon, nil},
		{http.MethodGet, "/v1/coupons/:code", admin, s.coupon, nil},
		{http.MethodPost, "/v1/coupons/:code/redemptions", client, s.redeem, nil},
		{http.MethodPost, "/v1/redemptions/:id/rollback", client, s.rollback, nil},
		{http.MethodGet, "/v1/strategies", client, s.strategies, nil},
		{http.MethodGet, "/v1/audit", admin, s.audit, []string{"resource", "cursor", "limit"}},
		{http.MethodGet, pathEvents, admin, s.events, []string{"last_event_id"}}, // it shows everybody's reservations
		{http.MethodGet, "/metrics", client, echo.WrapHandler(s.Metrics.Handler(s.Log)), nil},
		{http.MethodGet, pathHealth, anybody, s.healthz, nil},
		{http.MethodGet, "/readyz", anybody, s.readyz, nil},
		{http.MethodGet, "/openapi.yaml", anybody, s.openapi, nil},
	}
	if s.Authenticate == nil {
		// Where the other instances are is nobody's business on the open net; the page of a demonstration needs it.
		routes = append(routes, route{http.MethodGet, "/v1/instances", anybody, s.instances, nil})
	}
	if s.Demo != nil {
		routes = append(routes, s.demoRoutes()...)
	}
	for path, file := range s.Page {
		routes = append(routes, route{http.MethodGet, path, anybody, echo.WrapHandler(file), nil})
	}
	return routes
}

const pathHealth = "/healthz"

// New builds the handler. It panics when an instance's URL is not one: the configuration has checked them.
func New(c Config) http.Handler {
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 15 * time.Second
	}
	if c.MaxRequests == 0 {
		c.MaxRequests = 4096
	}
	c.Stream.setDefaults()
	s := &server{
		Config:  c,
		slots:   make(chan struct{}, c.MaxRequests),
		readers: readers{byCaller: map[string]int{}},
		origins: map[string]bool{},
		hosts:   map[string]bool{"localhost": true},
	}
	crossOrigin := http.NewCrossOriginProtection()
	for _, instance := range c.Instances {
		u, err := url.Parse(instance)
		if err == nil {
			err = crossOrigin.AddTrustedOrigin(u.Scheme + "://" + u.Host)
		}
		if err != nil {
			panic(fmt.Sprintf("handlers: instance %q: %v", instance, err))
		}
		s.origins[u.Scheme+"://"+u.Host] = true
		s.hosts[hostname(u)] = true
	}

	e := echo.New()
	e.HTTPErrorHandler = s.answerError
	e.IPExtractor = echo.ExtractIPDirect() // a client can write anything into X-Forwarded-For
	e.Pre(decodedPath)
	e.Use(s.observe, s.secure, s.ownHost, s.shareAcrossInstances(crossOrigin), s.limit)
	for _, r := range s.routes() {
		e.Add(r.method, r.path, r.handle, s.allow(r.role), strict(r.query))
		if r.method == http.MethodGet {
			e.HEAD(r.path, r.handle, s.allow(r.role), strict(r.query)) // net/http leaves the body out
		}
	}
	return e
}

// decodedPath has the router look at the decoded path, so that /v1/items/%61 and /v1/items/a are one item, as RFC 3986
// has it. No name contains a slash, so nothing is lost.
func decodedPath(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		c.Request().URL.RawPath = ""
		return next(c)
	}
}
