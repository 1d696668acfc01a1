package load

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// series counts what happened when. Its spans begin short and double as the race goes on, so that a race of a second and one
// of an hour need the same memory, and a plot of either has something to show.
type series struct {
	width time.Duration
	spans []span
}

type span struct {
	outcomes  map[string]int
	latencies *hdrhistogram.Histogram // nil: there was no answer
	slowest   time.Duration
}

const mostSpans = 100

func newSeries() series { return series{width: 10 * time.Millisecond} }

func (s *series) add(o outcome) {
	for int(o.ended/s.width) >= mostSpans {
		s.widen()
	}
	i := int(o.ended / s.width)
	for len(s.spans) <= i {
		s.spans = append(s.spans, span{outcomes: map[string]int{}})
	}
	at := &s.spans[i]
	at.outcomes[o.code]++
	if o.code == noAnswer {
		return
	}
	if at.latencies == nil {
		at.latencies = hdrhistogram.New(1, longest, 2)
	}
	_ = at.latencies.RecordValue(microseconds(o.took))
	at.slowest = max(at.slowest, o.took)
}

// widen makes one span of two.
func (s *series) widen() {
	s.width *= 2
	for i := range (len(s.spans) + 1) / 2 {
		a := s.spans[2*i]
		if 2*i+1 < len(s.spans) {
			a.swallow(s.spans[2*i+1])
		}
		s.spans[i] = a
	}
	s.spans = s.spans[:(len(s.spans)+1)/2]
}

func (a *span) swallow(b span) {
	for code, n := range b.outcomes {
		a.outcomes[code] += n
	}
	a.slowest = max(a.slowest, b.slowest)
	if a.latencies == nil {
		a.latencies = b.latencies
	} else if b.latencies != nil {
		a.latencies.Merge(b.latencies)
	}
}

func (s *series) moments() []Moment {
	moments := make([]Moment, len(s.spans))
	for i, at := range s.spans {
		moments[i] = Moment{Second: (time.Duration(i) * s.width).Seconds(), Outcomes: at.outcomes}
		if at.latencies != nil {
			moments[i].P50, moments[i].P99 = percentile(at.latencies, 50, at.slowest), percentile(at.latencies, 99, at.slowest)
		}
	}
	return moments
}
