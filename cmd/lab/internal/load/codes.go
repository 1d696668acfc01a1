package load

import (
	"errors"
	"fmt"
	"net/http"
)

// The codes of outcomes that have no problem document.
const (
	created  = "created"
	noAnswer = "no_answer"
)

// code names what came of a request.
func code(a answer, err error) string {
	p, isProblem := errors.AsType[*problem](err)
	switch {
	case a.status == http.StatusCreated:
		return created
	case isProblem:
		return p.name()
	case a.status == 0:
		return noAnswer
	}
	return fmt.Sprintf("http_%d", a.status)
}

// retryable tells whether the same request, with the same key, can still succeed: it had no answer, or one that says so, or
// one of something between us and the service.
func retryable(a answer, err error) bool {
	p, isProblem := errors.AsType[*problem](err)
	return a.status == 0 || isProblem && (p.Retryable || p.Code == "" && p.Status >= 500)
}

// unknown tells whether a request may have been carried out although nobody was told. Of all the service's refusals only
// these leave it open.
func unknown(a answer, code string) bool {
	return a.status == 0 || a.status == http.StatusInternalServerError || code == "outcome_unknown" ||
		code == fmt.Sprintf("http_%d", a.status) && a.status >= 500
}
