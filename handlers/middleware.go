package handlers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// Keys of what a request carries with it in echo's context.
const (
	keyRequestID = "request_id"
	keyCaller    = "caller"
	keyError     = "error"
	keyBody      = "body"
)

// requestIDPattern is what a client may call its request. An unchecked value would end up in logs and headers.
var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)

// observe names the request, turns a panic into an error, has errors answered, counts, and writes one log line.
func (s *server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !requestIDPattern.MatchString(id) {
			id = rand.Text()
		}
		c.Set(keyRequestID, id)
		c.Response().Header().Set(echo.HeaderXRequestID, id)

		c.Request().Pattern = c.Request().Method + " " + c.Path() // as net/http's own router does; traces read it
		if err := recovered(next)(c); err != nil {
			c.Error(err)
		}
		status := c.Response().Status
		if c.Path() != pathEvents || status != http.StatusOK { // how long somebody listens says nothing about the service
			s.Metrics.Request(c.Path(), c.Request().Method, status, time.Since(start))
		}
		if c.Path() == pathHealth {
			return nil // asked every few seconds, and says nothing
		}
		attrs := []slog.Attr{
			slog.String("method", c.Request().Method),
			slog.String("route", c.Path()),
			slog.Int("status", status),
			slog.Duration("duration", time.Since(start)),
			slog.String("request_id", id),
		}
		if strategy := c.Response().Header().Get(headerStrategy); strategy != "" {
			attrs = append(attrs, slog.String("strategy", strategy))
		}
		level := slog.LevelInfo
		if err, ok := c.Get(keyError).(error); ok && status >= statusClientGone { // a refusal is no news, a failure is
			attrs = append(attrs, slog.String("error", err.Error()))
			if p, ok := errors.AsType[*panicError](err); ok {
				attrs = append(attrs, slog.String("stack", string(p.stack)))
			}
			switch status {
			case http.StatusInternalServerError:
				level = slog.LevelError
			case http.StatusServiceUnavailable:
				level = slog.LevelWarn
			}
		}
		s.Log.LogAttrs(c.Request().Context(), level, "request", attrs...)
		return nil
	}
}

// panicError is a panic on its way to the log.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func recovered(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if v := recover(); v == http.ErrAbortHandler {
				panic(v) // net/http's own way to break off an answer
			} else if v != nil {
				err = &panicError{value: v, stack: debug.Stack()}
			}
		}()
		return next(c)
	}
}

// secure sets the headers that every answer carries. The page brings its own Content-Security-Policy.
func (s *server) secure(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set(echo.HeaderXContentTypeOptions, "nosniff")
		h.Set(echo.HeaderReferrerPolicy, "no-referrer")
		if s.TLS { // for two years, as browsers remember it
			h.Set(echo.HeaderStrictTransportSecurity, "max-age=63072000")
		}
		if ofAPI(c) {
			h.Set(echo.HeaderCacheControl, "no-store")
		}
		return next(c)
	}
}

// ownHost refuses, where authentication is off, what was sent to another host's name. Any web site can have its name lead to
// 127.0.0.1 (DNS rebinding). To a browser its page and this service are then one site, so that the check of the origin finds
// nothing; but the name is still in the Host header.
func (s *server) ownHost(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if s.Authenticate == nil {
			name := hostname(&url.URL{Host: c.Request().Host})
			if ip, err := netip.ParseAddr(name); !s.hosts[name] && (err != nil || !ip.Unmap().IsLoopback()) {
				return errMisdirected
			}
		}
		return next(c)
	}
}

// hostname is the host without its port, as names are compared.
func hostname(u *url.URL) string { return strings.ToLower(u.Hostname()) }

func ofAPI(c echo.Context) bool {
	path := c.Request().URL.Path
	return path == "/v1" || strings.HasPrefix(path, "/v1/") || path == pathDemo || strings.HasPrefix(path, pathDemo+"/")
}

// shareAcrossInstances lets a page that one instance served call the others, and no other site at all. Cookies are not
// used, so no credentials are allowed. The check of the origin matters where authentication is off: without it any web site
// that somebody visits could send a POST without a body to an instance on that machine.
func (s *server) shareAcrossInstances(protection *http.CrossOriginProtection) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			r, h := c.Request(), c.Response().Header()
			h.Add(echo.HeaderVary, echo.HeaderOrigin)
			if origin := r.Header.Get(echo.HeaderOrigin); s.origins[origin] {
				h.Set(echo.HeaderAccessControlAllowOrigin, origin)
				h.Set(echo.HeaderAccessControlExposeHeaders, strings.Join([]string{
					headerStrategy, headerToken, headerTiming, headerPolicy, headerQuota, headerETag, echo.HeaderRetryAfter, echo.HeaderLocation, echo.HeaderXRequestID, headerReplayed,
				}, ", "))
				if r.Method == http.MethodOptions && r.Header.Get(echo.HeaderAccessControlRequestMethod) != "" {
					h.Set(echo.HeaderAccessControlAllowMethods, "GET, HEAD, POST")
					h.Set(echo.HeaderAccessControlAllowHeaders, "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, X-Request-Id")
					h.Set(echo.HeaderAccessControlMaxAge, "600")
					return c.NoContent(http.StatusNoContent)
				}
			}
			if err := protection.Check(r); err != nil {
				return errCrossOrigin
			}
			return next(c)
		}
	}
}

// limit bounds how long a request may take and how many of the API's run at once. Health checks and the page are not
// counted: whoever gets a connection learns that an instance with much to do is neither dead nor gone. Streams of events
// last, and have a bound of their own.
func (s *server) limit(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Path() == pathEvents {
			return next(c)
		}
		if ofAPI(c) {
			select {
			case s.slots <- struct{}{}:
				defer func() { <-s.slots }()
			default:
				return errOverloaded
			}
		}
		r := c.Request()
		ctx, cancel := context.WithTimeout(r.Context(), s.RequestTimeout)
		defer cancel()
		c.SetRequest(r.WithContext(ctx))
		defer c.SetRequest(r) // whoever asks later whether the client has gone must not see this cancel
		return next(c)
	}
}

// allow lets a caller through whose key has the role.
func (s *server) allow(needed role) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if needed == anybody {
				return next(c)
			}
			caller, err := s.authenticate(c)
			if err != nil {
				return err
			}
			c.Set(keyCaller, caller)
			if err := s.take(c, caller); err != nil { // also of what is going to be forbidden, which is work as well
				return err
			}
			if needed == admin && !caller.Admin {
				return errForbidden
			}
			return next(c)
		}
	}
}

// take spends one request of the caller's, and says what is left in the fields of draft-ietf-httpapi-ratelimit-headers-11.
func (s *server) take(c echo.Context, caller domain.Caller) error {
	if s.Take == nil {
		return nil
	}
	quota, err := s.Take(c.Request().Context(), caller)
	if quota.Limit > 0 {
		h := c.Response().Header()
		h.Set(headerPolicy, fmt.Sprintf(`"caller";q=%d;w=%s`, quota.Limit, seconds(quota.Window)))
		h.Set(headerQuota, fmt.Sprintf(`"caller";r=%d;t=%s`, quota.Remaining, seconds(quota.Reset)))
	}
	return err
}

// seconds is at least one: whoever comes back after none comes too early.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(int64(math.Ceil(d.Seconds())), 1), 10)
}

func (s *server) authenticate(c echo.Context) (domain.Caller, error) {
	if s.Authenticate == nil {
		return domain.Caller{ID: "anonymous", Admin: true}, nil
	}
	scheme, key, _ := strings.Cut(c.Request().Header.Get(echo.HeaderAuthorization), " ")
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return domain.Caller{}, errUnauthorized
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), s.RequestTimeout) // a stream of events has no other limit
	defer cancel()
	caller, err := s.Authenticate(ctx, key)
	if errors.Is(err, domain.ErrNotFound) {
		return domain.Caller{}, errUnauthorized
	}
	return caller, err
}

// callerOf is who asks; allow has put it there.
func callerOf(c echo.Context) domain.Caller { return c.Get(keyCaller).(domain.Caller) }
