package handlers

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"fencepost/domain"
)

// digest is short for what an answer says: it changes whenever that does.
func digest(v any) string {
	sum := sha256.Sum256(encode(v))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// tagged answers a GET with its ETag, and without the body if the client has it already.
func tagged(c echo.Context, tag string, body any) error {
	if unchanged(c, tag) {
		return c.NoContent(http.StatusNotModified)
	}
	return c.JSON(http.StatusOK, body)
}

// unchanged puts the ETag on the answer, and tells whether the client has that answer already.
func unchanged(c echo.Context, tag string) bool {
	etag := `"` + tag + `"`
	c.Response().Header().Set(headerETag, etag)
	return anyTag(c.Request().Header.Values(headerIfNoneMatch), func(other string) bool {
		return strings.TrimPrefix(other, "W/") == etag // a proxy that compresses makes a tag weak
	})
}

// anyTag tells whether is holds for one of the tags that a header lists. * stands for any. What is no tag is none that is
// looked for, so a header that cannot be read is taken for one that names something else.
func anyTag(header []string, is func(tag string) bool) bool {
	for tag := range strings.SplitSeq(strings.Join(header, ","), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || is(tag) {
			return true
		}
	}
	return false
}

// itemTag has two parts. The fence moves with every grant, so that the second part may be out of date before an admin has
// looked; what an admin decides by is the stock, which is the first.
func itemTag(i itemJSON) string { return digest(i.stockJSON) + "." + digest(i.fenceJSON) }

// stockExpected is If-Match as a question about the item; nil if the client has none.
func stockExpected(r *http.Request) func(domain.Item) bool {
	header, ok := r.Header[headerIfMatch]
	if !ok {
		return nil
	}
	return func(i domain.Item) bool {
		stock := `"` + digest(stockOf(i)) + "."
		return anyTag(header, func(tag string) bool { return strings.HasPrefix(tag, stock) })
	}
}
