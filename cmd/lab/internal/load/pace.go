package load

import (
	"context"
	"math"
	"time"
)

// pace is when the attempts of an open loop are due: at a rate that rises evenly during the ramp and stays then.
type pace struct {
	rate float64 // a second
	ramp time.Duration
}

// due is the moment of the n-th attempt, counted from 0 and from the beginning.
func (p pace) due(n int) time.Duration {
	ramp := p.ramp.Seconds()
	within := p.rate * ramp / 2 // so many are due during the ramp
	seconds := ramp + (float64(n)-within)/p.rate
	if float64(n) < within {
		seconds = math.Sqrt(2 * float64(n) * ramp / p.rate)
	}
	return time.Duration(seconds * float64(time.Second))
}

// within is how many attempts are due before the time is up.
func (p pace) within(d time.Duration) int {
	n := int(p.rate * (d.Seconds() - p.ramp.Seconds()/2))
	if d < p.ramp {
		n = int(p.rate * d.Seconds() * d.Seconds() / (2 * p.ramp.Seconds()))
	}
	for p.due(n) < d { // the formulas are exact but for the last attempt
		n++
	}
	return n
}

// sleep returns false when ctx has ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
