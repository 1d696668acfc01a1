package domain

import (
	"fmt"
	"regexp"
	"unicode"
	"unicode/utf8"
)

// The limits of what can be asked for.
const (
	MaxStock    = 1_000_000_000
	MaxQuantity = 100 // units in one line
	maxName     = 200 // characters
)

// Item is the stock of one article. Available + reserved = on hand; what was ever added = on hand + sold.
type Item struct {
	SKU      string
	Name     string
	OnHand   int64 // in stock, held units included
	Reserved int64 // held and not yet confirmed
	Sold     int64
}

// Available is what can still be reserved.
func (i Item) Available() int64 { return i.OnHand - i.Reserved }

// Hold takes quantity units out of what is available.
func (i *Item) Hold(quantity int64) error {
	if quantity > i.Available() {
		return &OutOfStockError{Items: []Shortage{{SKU: i.SKU, Asked: quantity, Available: max(i.Available(), 0)}}}
	}
	i.Reserved += quantity
	return nil
}

// Confirm turns held units into sold ones.
func (i *Item) Confirm(quantity int64) error {
	if quantity > i.Reserved {
		return fmt.Errorf("confirming %d of %d held units of %s: %w", quantity, i.Reserved, i.SKU, ErrCountersCorrupted)
	}
	i.Reserved -= quantity
	i.OnHand -= quantity
	i.Sold += quantity
	return nil
}

// Release makes held units available again.
func (i *Item) Release(quantity int64) error {
	if quantity > i.Reserved {
		return fmt.Errorf("releasing %d of %d held units of %s: %w", quantity, i.Reserved, i.SKU, ErrCountersCorrupted)
	}
	i.Reserved -= quantity
	return nil
}

// Restock adds units.
func (i *Item) Restock(quantity int64) error {
	if quantity > MaxStock-i.OnHand {
		return Invalid("quantity", "must be at most %d: %d are on hand and the limit is %d", MaxStock-i.OnHand, i.OnHand, MaxStock)
	}
	i.OnHand += quantity
	return nil
}

var skuPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckSKU tells whether sku can name an item.
func CheckSKU(field, sku string) error {
	if !skuPattern.MatchString(sku) {
		return Invalid(field, "must be 1 to 64 letters, digits, dots, dashes or underscores and begin with a letter or digit")
	}
	return nil
}

func checkQuantity(field string, quantity int64) error {
	if quantity < 1 || quantity > MaxQuantity {
		return Invalid(field, "must be between 1 and %d", MaxQuantity)
	}
	return nil
}

// checkText accepts text that a person could have typed: no control characters (PostgreSQL cannot store NUL, and a line
// break in a name forges log lines).
func checkText(field, text string, least, most int) error {
	if n := utf8.RuneCountInString(text); n < least || n > most {
		return Invalid(field, "must have %d to %d characters", least, most)
	}
	for _, r := range text {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return Invalid(field, "must not contain control characters or broken UTF-8")
		}
	}
	return nil
}
