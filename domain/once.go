package domain

import (
	"errors"
	"fmt"
)

// Once makes a request happen once, however often it is sent. The fence does not do that: a client that sends a request again
// holds the lock by right the second time as well. The key, the work, and the answer are written in one transaction, so that
// either all of it has happened or nothing.
//
// A nil *Once is a request that happens as often as it is sent.
type Once struct {
	Caller      string // whose key it is: other callers' keys are others
	Key         string
	Fingerprint [32]byte // of the request; the same key with another request is a mistake
	// Encode makes the answer that is kept, of the result or of the error that refused it.
	Encode func(result any, err error) Answer
}

// Answer is what a caller was told, and is told again.
type Answer struct {
	Status   int
	Location string
	Body     []byte // nil when it was thrown away for its age; Location still says where the result is
}

// Replay ends a use case whose request was answered before. It is an error only in that there is no result but the answer.
type Replay struct{ Answer Answer }

func (r *Replay) Error() string {
	return fmt.Sprintf("answered before, with status %d", r.Answer.Status)
}

// Final tells whether a refusal is kept as the answer. It is, if it was decided on the state of the resource: a retry must not
// change the answer because the state has changed since. Anything that says "try again" is never kept. Nor is ErrCouponExpired:
// the same answer is given for codes that do not exist, where there is nothing to keep it with.
func Final(err error) bool {
	for _, refusal := range []error{ErrOutOfStock, ErrWrongState, ErrChanged, ErrExpired, ErrCouponExhausted, ErrCustomerLimit} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}
