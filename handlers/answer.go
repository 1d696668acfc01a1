package handlers

import (
	"errors"
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

// stamp says under which grant a section was decided and where its time went. A refusal was decided under a lock as well. An
// answer that is given again was not: the grant under which it was found wrote nothing.
//
// The token is shown if nobody else can be given it: a lock server counts on with each grant, but what a row has issued is
// undone with its transaction, and the next one gets the same number. So a refusal under a row lock shows none.
func stamp(c echo.Context, receipt domain.Receipt, err error) {
	if len(receipt.Grants) == 0 {
		return
	}
	h, grant := c.Response().Header(), receipt.Grants[0]
	if _, again := errors.AsType[*domain.Replay](err); !again {
		h.Set(headerStrategy, grant.Strategy)
		if grant.Token != 0 && (err == nil || !grant.RowLock) {
			h.Set(headerToken, fullToken(grant.Epoch, grant.Token))
		}
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
