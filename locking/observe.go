package locking

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fencepost/domain"
)

func (g *Guard) observe(e domain.Event) {
	if g.observer != nil {
		e.At = time.Now()
		g.observer(e)
	}
}

// errPanicked stands for the error that a section which panicked could not return.
var errPanicked = errors.New("the section panicked")

// ended reports a try of a section. It came to its transaction if the receipt has grants.
func (g *Guard) ended(began time.Time, asked []domain.Grant, receipt domain.Receipt, err error) {
	e := domain.Event{Kind: domain.EventSection, Grants: receipt.Grants, Err: err, LockWait: receipt.LockWait}
	took := time.Since(began)
	switch {
	case receipt.Grants != nil:
		e.Hold = took - e.LockWait
	case err != nil:
		e.Grants, e.LockWait = asked, took
	default:
		e.Grants, e.Err = asked, errPanicked
	}
	g.observe(e)
}

// losing is lose, and reports it.
func (g *Guard) losing(grant domain.Grant, lose context.CancelCauseFunc) context.CancelCauseFunc {
	return func(cause error) {
		g.observe(domain.Event{Kind: domain.EventLost, Grants: []domain.Grant{grant}, Err: cause})
		lose(cause)
	}
}

// superseded is the error that a reign which is not this instance's ends in. It is reported once: a superseded instance
// meets it at every request.
func (g *Guard) superseded(a domain.Authority, ours string) error {
	if g.reigns.met(a) {
		g.observe(domain.Event{Kind: domain.EventSuperseded, Authority: &a})
	}
	return fmt.Errorf("%w: %s is run by %s since %s, this instance uses %s",
		domain.ErrSuperseded, a.Scope, a.Strategy, a.Since.UTC().Format("2006-01-02 15:04:05"), ours)
}
