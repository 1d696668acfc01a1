package handlers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// The refusals that begin and end in this package.
var (
	errUnauthorized = errors.New("no valid key")
	errForbidden    = errors.New("the key is not an admin's")
	errCrossOrigin  = errors.New("a request from another site's page")
	errMisdirected  = errors.New("a request to another host's name")
	errNoRoute      = errors.New("no such path")
	errNoMethod     = errors.New("no such method here")
	errMediaType    = errors.New("the body is not declared as JSON")
	errEncoding     = errors.New("the body is encoded")
	errTooLarge     = errors.New("the body is too large")
	errAnswerGone   = errors.New("the answer is not kept any more")
	errIncomplete   = errors.New("the body did not come to its end")
	errMalformed    = errors.New("the body is not JSON")
	errOverloaded   = errors.New("too many requests at once")
	errReaders      = errors.New("too many readers of events")
	errOwnReaders   = errors.New("too many readers of events of one caller")
	errNotReady     = errors.New("not ready")
	errInternal     = errors.New("a fault of ours")
)

// Is makes every malformedError an errMalformed.
func (e *malformedError) Is(target error) bool { return target == errMalformed }

// statusClientGone is what the log says of a client that did not wait for its answer. No client ever sees it.
const statusClientGone = 499

const nothingWritten = "Nothing was written."

// problems is the one table from errors to answers. The first row that an error is wins, and the order matters once: an
// error can be both an unknown outcome and a server that is gone, and to call that "nothing was written" would be a lie.
//
// detail is what the client reads. Where it is empty the error's own text is used, which the domain has made from the
// request and from the state of what was asked for. Errors that can carry the words of a server or a driver have a fixed one.
//
// retryable means that the same request may be sent again as it is, and can then succeed. It is false for an unknown
// outcome, unless the request has an Idempotency-Key: sending it again could do the work twice.
var problems = []struct {
	err       error
	status    int
	code      string
	retryable bool
	title     string
	detail    string
}{
	{
		domain.ErrOutcomeUnknown, http.StatusServiceUnavailable, "outcome_unknown", false, "The outcome is unknown",
		"The connection to PostgreSQL broke during COMMIT: the change may or may not have been made. Read the state before you try again.",
	},

	{domain.ErrInvalid, http.StatusUnprocessableEntity, "invalid", false, "The input is not valid", ""},
	{domain.ErrNotFound, http.StatusNotFound, "not_found", false, "Not found", "What the path names does not exist, or is not yours to see."},
	{domain.ErrAlreadyExists, http.StatusConflict, "already_exists", false, "It exists already", "The name is taken. Nothing was written."},
	{domain.ErrOutOfStock, http.StatusConflict, "out_of_stock", false, "Not enough stock", ""},
	{domain.ErrWrongState, http.StatusConflict, "wrong_state", false, "Not possible in this state", ""},
	{
		domain.ErrChanged, http.StatusPreconditionFailed, "precondition_failed", false, "The item has changed",
		"The item is not any more what If-Match says. Read it again. " + nothingWritten,
	},
	{domain.ErrExpired, http.StatusConflict, "reservation_expired", false, "The reservation has expired", ""},
	{domain.ErrCouponExhausted, http.StatusConflict, "coupon_exhausted", false, "The coupon is used up", ""},
	{domain.ErrCustomerLimit, http.StatusConflict, "customer_limit", false, "The customer has used the coupon as often as allowed", ""},
	{domain.ErrTooManyHolds, http.StatusConflict, "too_many_holds", false, "Too many open holds", "You have as many open holds as one caller may. Confirm or release one first. " + nothingWritten},
	{domain.ErrRateLimited, http.StatusTooManyRequests, "rate_limited", true, "Too many requests", "You have asked for more than one caller may in this time. " + nothingWritten},
	{
		// The same words for a coupon that does not exist: the difference would tell which codes are real.
		domain.ErrCouponExpired, http.StatusGone, "coupon_expired", false, "The coupon is not valid",
		"There is no coupon with this code that is valid now.",
	},
	{
		domain.ErrKeyReused, http.StatusUnprocessableEntity, "idempotency_key_reused", false, "The key belongs to another request",
		"This Idempotency-Key was sent with another request before. Use a new key for a new request.",
	},
	{
		errAnswerGone, http.StatusGone, "answer_expired", false, "The request was answered long ago",
		"The request was carried out when it was sent first, and not again. Its answer is not kept any more; the Location header, if there is one, says where the result is.",
	},
	{
		domain.ErrCountersCorrupted, http.StatusConflict, "counters_corrupted", false, "The counters are corrupted",
		"An unfenced race has corrupted the counters of this resource. " + nothingWritten,
	},

	{
		domain.ErrStaleToken, http.StatusConflict, "stale_fencing_token", true, "The fencing token is stale",
		"PostgreSQL has seen a newer grant for this resource than the one this request held. " + nothingWritten,
	},
	{
		domain.ErrSuperseded, http.StatusServiceUnavailable, "strategy_superseded", true, "Another lock strategy is in charge",
		"This instance runs a lock strategy that is not in charge any more; other instances do. " + nothingWritten,
	},
	{
		domain.ErrFencingRequired, http.StatusConflict, "fencing_required", false, "The resource is fenced",
		"The resource is fenced, and the lock strategy of this instance issues no fencing tokens. " + nothingWritten,
	},
	{
		domain.ErrLockTimeout, http.StatusServiceUnavailable, "lock_timeout", true, "The lock did not come free in time",
		"Others held the lock for the whole of the allowed wait. " + nothingWritten,
	},
	{
		domain.ErrQueueFull, http.StatusServiceUnavailable, "queue_full", true, "Too many wait for the same resource",
		"As many requests as this instance lets wait for one resource are waiting for this one. " + nothingWritten,
	},
	{
		domain.ErrLockLost, http.StatusServiceUnavailable, "lock_lost", true, "The lock was lost",
		"The lock was lost before the change was committed. " + nothingWritten,
	},
	{domain.ErrUnavailable, http.StatusServiceUnavailable, "backend_unavailable", true, "A server is not available", nothingWritten},
	{
		context.DeadlineExceeded, http.StatusServiceUnavailable, "timeout", true, "The request took too long",
		"The request took longer than this instance allows. " + nothingWritten,
	},

	{errUnauthorized, http.StatusUnauthorized, "unauthorized", false, "A valid key is needed", "Send a valid key as \"Authorization: Bearer KEY\"."},
	{errForbidden, http.StatusForbidden, "forbidden", false, "Not allowed", "This needs an admin's key."},
	{errCrossOrigin, http.StatusForbidden, "cross_origin", false, "Not allowed from another site", "Only the pages of this service's instances may call it from a browser."},
	{errMisdirected, http.StatusMisdirectedRequest, "misdirected", false, "Sent to another host's name", "Without keys this service answers under localhost, loopback addresses and the hosts of FENCEPOST_INSTANCES only."},
	{errNoRoute, http.StatusNotFound, "not_found", false, "Not found", "There is nothing at this path."},
	{errNoMethod, http.StatusMethodNotAllowed, "method_not_allowed", false, "Method not allowed", "The Allow header lists the methods of this path."},
	{errMediaType, http.StatusUnsupportedMediaType, "unsupported_media_type", false, "The body must be JSON", "Send the body as UTF-8 with \"Content-Type: application/json\"."},
	{errEncoding, http.StatusUnsupportedMediaType, "unsupported_media_type", false, "The body must not be encoded", "Send the body as it is, without the header Content-Encoding."},
	{errTooLarge, http.StatusRequestEntityTooLarge, "too_large", false, "The body is too large", fmt.Sprintf("The limit is %d bytes.", maxBody)},
	{errIncomplete, http.StatusRequestTimeout, "request_timeout", true, "The body is not complete", "The end of the body did not arrive, or not in time. " + nothingWritten},
	{errMalformed, http.StatusBadRequest, "malformed", false, "The body is not JSON", ""},
	{errOverloaded, http.StatusServiceUnavailable, "overloaded", true, "Too many requests at once", "This instance serves as many requests as it may. " + nothingWritten},
	{errReaders, http.StatusServiceUnavailable, "too_many_readers", true, "Too many readers of events", "This instance has as many open streams of events as it may."},
	{errOwnReaders, http.StatusTooManyRequests, "too_many_readers", true, "Too many readers of events", "You have as many open streams of events as one caller may. Close one."},
	{errNotReady, http.StatusServiceUnavailable, "not_ready", true, "Not ready", ""},

	{errInternal, http.StatusInternalServerError, "internal", false, "A fault of ours", "The log knows more under this request_id."},
}

// problem is the body of an error (RFC 9457). Its type is a name, not an address.
type problem struct {
	Type           string `json:"type"`
	Title          string `json:"title"`
	Status         int    `json:"status"`
	Detail         string `json:"detail"`
	Instance       string `json:"instance"`
	Code           string `json:"code"`
	Retryable      bool   `json:"retryable"`
	RequestID      string `json:"request_id"`
	Field          string `json:"field,omitempty"`
	Offset         *int64 `json:"offset,omitempty"` // of the first byte that is not JSON
	PresentedToken string `json:"presented_token,omitempty"`
	CurrentToken   string `json:"current_token,omitempty"`
	// SKUs are the items of which there is not enough.
	SKUs []string `json:"skus,omitempty"`
}

// answerError is echo's error handler, and the only place that answers an error.
func (s *server) answerError(err error, c echo.Context) {
	if before, ok := errors.AsType[*domain.Replay](err); ok {
		if err = replay(c, before.Answer); err == nil {
			return
		}
	}
	c.Set(keyError, err)
	if c.Response().Committed {
		return // too late: the log line has to do
	}
	if errors.Is(err, context.Canceled) && errors.Is(c.Request().Context().Err(), context.Canceled) {
		_ = c.NoContent(statusClientGone)
		return
	}
	p := newProblem(err)
	p.Instance = c.Request().URL.EscapedPath()
	p.RequestID = requestID(c)
	if errors.Is(err, domain.ErrOutcomeUnknown) && keyed(c) {
		p.Retryable, p.Detail = true, "The connection broke while the change was being committed. Send the request again with the same Idempotency-Key: the answer will be the truth."
	}

	h := c.Response().Header()
	h.Set(echo.HeaderContentType, typeProblem)
	h.Set(echo.HeaderCacheControl, "no-store")
	if p.Status == http.StatusUnauthorized {
		h.Set(echo.HeaderWWWAuthenticate, `Bearer realm="fencepost"`)
	}
	if errors.Is(err, errEncoding) {
		h.Set(echo.HeaderAcceptEncoding, identity) // what RFC 9110 would have a 415 say for this reason
	}
	// The header invites programs to send the request again by themselves.
	if p.Retryable && (p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests) {
		h.Set(echo.HeaderRetryAfter, "1")
	}
	if limited, ok := errors.AsType[*domain.LimitedError](err); ok {
		h.Set(echo.HeaderRetryAfter, seconds(limited.After))
	}
	c.Response().WriteHeader(p.Status)
	_, _ = c.Response().Write(encode(p)) // it fails only when the client is gone
}

const typeProblem = "application/problem+json"

func requestID(c echo.Context) string {
	id, _ := c.Get(keyRequestID).(string)
	return id
}

// Outcome names what a section ended with: "committed", "replayed" if there was an answer already, or the code that its error
// has in answers.
func Outcome(err error) string {
	if err == nil {
		return "committed"
	}
	if _, again := errors.AsType[*domain.Replay](err); again {
		return "replayed"
	}
	code := newProblem(err).Code
	if code == "internal" && errors.Is(err, context.Canceled) {
		return "client_gone"
	}
	return code
}

func newProblem(err error) problem {
	row := problems[len(problems)-1]
	var echoError *echo.HTTPError
	switch {
	case errors.As(err, &echoError) && echoError.Code == http.StatusNotFound:
		err = errNoRoute
	case errors.As(err, &echoError) && echoError.Code == http.StatusMethodNotAllowed:
		err = errNoMethod
	}
	for _, r := range problems {
		if errors.Is(err, r.err) {
			row = r
			break
		}
	}
	p := problem{
		Type:      "urn:fencepost:problem:" + row.code,
		Title:     row.title,
		Status:    row.status,
		Detail:    row.detail,
		Code:      row.code,
		Retryable: row.retryable,
	}
	if p.Detail == "" {
		p.Detail = err.Error()
	}
	switch row.err {
	case domain.ErrInvalid:
		if invalid, ok := errors.AsType[*domain.InvalidError](err); ok {
			p.Field, p.Detail = invalid.Field, invalid.Error()
		}
	case domain.ErrOutOfStock:
		if short, ok := errors.AsType[*domain.OutOfStockError](err); ok {
			for _, s := range short.Items {
				p.SKUs = append(p.SKUs, s.SKU)
			}
		}
	case domain.ErrUnavailable:
		if unavailable, ok := errors.AsType[*domain.UnavailableError](err); ok {
			p.Detail = unavailable.Server + " is not available. " + nothingWritten // its Err is for the log
		}
	case domain.ErrStaleToken:
		if refused, ok := errors.AsType[*domain.RefusedError](err); ok {
			p.PresentedToken = fullToken(refused.Refusal.Grant.Epoch, refused.Refusal.Grant.Token)
			p.CurrentToken = fullToken(refused.Refusal.CurrentEpoch, refused.Refusal.CurrentToken)
		}
	case errMalformed:
		if malformed, ok := errors.AsType[*malformedError](err); ok {
			p.Offset = &malformed.offset
		}
	}
	return p
}

// fullToken makes tokens of different epochs comparable. It is text, because a token can be larger than the integers that
// JavaScript keeps exactly.
func fullToken(epoch int64, token domain.Token) string {
	return strconv.FormatInt(epoch, 10) + "." + strconv.FormatInt(int64(token), 10)
}
