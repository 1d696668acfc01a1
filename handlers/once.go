package handlers

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// The header follows draft-ietf-httpapi-idempotency-key-header-07, the other one what several vendors send.
const (
	headerKey      = "Idempotency-Key"
	headerReplayed = "Idempotent-Replayed"
)

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9._~:/+=-]{8,255}$`)

// reply is the answer of a POST.
type reply struct {
	status   int
	location string
	body     any
}

// encode makes the bytes of a body. They are the same each time, so what is kept for a retry is what was sent at first.
func encode(body any) []byte {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(body); err != nil {
		panic(fmt.Sprintf("handlers: a body that cannot be encoded: %v", err)) // only types of ours are encoded
	}
	return b.Bytes()
}

// once is the request's Idempotency-Key with what it takes to keep its answer; nil if there is no key. It wants the body to
// have been read.
func once[T any](c echo.Context, render func(T) reply) (*domain.Once, error) {
	keys := c.Request().Header.Values(headerKey)
	if len(keys) == 0 {
		return nil, nil
	}
	key := keys[0]                                                // an empty one is a mistake: whoever sends it counts on it
	if n := len(key); n > 1 && key[0] == '"' && key[n-1] == '"' { // as the draft writes it
		key = key[1 : n-1]
	}
	if !keyPattern.MatchString(key) || len(keys) > 1 {
		return nil, domain.Invalid(headerKey, "must be one key of 8 to 255 letters, digits and ._~:/+=-")
	}
	body, _ := c.Get(keyBody).([]byte)
	request := fmt.Sprintf("%s %s %q\n%s", c.Request().Method, c.Request().URL.Path, c.Request().Header[headerIfMatch], body)
	id, path := requestID(c), c.Request().URL.EscapedPath()
	return &domain.Once{
		Caller: callerOf(c).ID, Key: key, Fingerprint: sha256.Sum256([]byte(request)),
		Encode: func(result any, err error) domain.Answer {
			if err != nil {
				p := newProblem(err)
				p.RequestID, p.Instance = id, path
				return domain.Answer{Status: p.Status, Body: encode(p)}
			}
			r := render(result.(T))
			return domain.Answer{Status: r.status, Location: r.location, Body: encode(r.body)}
		},
	}, nil
}

// answer sends what a use case has come to.
func (r reply) answer(c echo.Context, receipt domain.Receipt, err error) error {
	stamp(c, receipt, err)
	if err != nil {
		return err
	}
	if r.location != "" {
		c.Response().Header().Set(echo.HeaderLocation, r.location)
	}
	return c.JSONBlob(r.status, encode(r.body))
}

// replay sends the answer that a request was given before.
func replay(c echo.Context, a domain.Answer) error {
	h := c.Response().Header()
	h.Set(headerReplayed, "true")
	if a.Location != "" {
		h.Set(echo.HeaderLocation, a.Location)
	}
	if a.Body == nil {
		return errAnswerGone
	}
	if a.Status >= http.StatusBadRequest {
		return c.Blob(a.Status, typeProblem, a.Body)
	}
	return c.JSONBlob(a.Status, a.Body)
}

// keyed tells whether a retry of the request cannot do its work a second time.
func keyed(c echo.Context) bool { return c.Request().Header.Get(headerKey) != "" }
