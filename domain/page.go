package domain

import "encoding/base64"

// Page asks for a part of a list that is sorted by resource.
type Page struct {
	Cursor string // where the page before ended; empty: from the beginning
	Limit  int64  // the most that is wanted
}

// DefaultPage is the limit for those who do not care.
const (
	DefaultPage = 100
	maxPage     = 1000
)

// cursor names the last resource of a page. A place in the list would not do: what is created meanwhile would move it.
func (k Key) cursor() string { return base64.RawURLEncoding.EncodeToString([]byte(k)) }

// list reads a page, and returns the cursor of the next one: empty if there is none. read returns at most limit rows of
// those after a key.
func list[T any](p Page, keyOf func(T) Key, read func(after Key, limit int64) ([]T, error)) (rows []T, next string, err error) {
	if p.Limit < 1 || p.Limit > maxPage {
		return nil, "", Invalid("limit", "must be between 1 and %d", maxPage)
	}
	decoded, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	after := Key(decoded)
	// The decoder is kind: it overlooks line breaks and stray bits.
	if err != nil || after.cursor() != p.Cursor || after != "" && !after.valid() {
		return nil, "", Invalid("cursor", "must be the next_cursor of another page")
	}
	rows, err = read(after, p.Limit+1) // one more tells whether there is a next page
	if err != nil || int64(len(rows)) <= p.Limit {
		return rows, "", err
	}
	rows = rows[:p.Limit]
	return rows, keyOf(rows[p.Limit-1]).cursor(), nil
}
