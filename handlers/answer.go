package handlers

import (
	"fmt"
	"time"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

const (
	headerStrategy = "Fencepost-Strategy"
	headerToken    = "Fencepost-Token"
	headerTiming   = "Server-Timing"
	headerPolicy   = "RateLimit-Policy"
	headerQuota    = "RateLimit"

	headerETag        = "Etag" // as net/http spells it
	headerIfMatch     = "If-Match"
	headerIfNoneMatch = "If-None-Match"
)

// stamp says under which grant a section ran and where its time went. It is called before the error is looked at: a
// refusal was decided under a lock as well.
func stamp(c echo.Context, receipt domain.Receipt) {
	if len(receipt.Grants) == 0 {
		return
	}
	h, grant := c.Response().Header(), receipt.Grants[0]
	h.Set(headerStrategy, grant.Strategy)
	if grant.Token != 0 {
		h.Set(headerToken, fullToken(grant.Epoch, grant.Token))
	}
	h.Set(headerTiming, fmt.Sprintf("lock;dur=%.3f, db;dur=%.3f", milliseconds(receipt.LockWait), milliseconds(receipt.Database)))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
