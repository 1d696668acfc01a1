package load

import (
	"math"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longest is the end of the histograms' range, in microseconds. Latencies beyond it count as so long.
const longest = int64(2 * time.Hour / time.Microsecond)

// tally counts the outcomes of a race while it runs.
type tally struct {
	requests int // 0: there is no bound
	progress func(Progress)
	took     time.Duration

	mu          sync.Mutex
	handedOut   int
	sent        int
	answered    int
	replayed    int
	late        int
	latest      time.Duration
	byInstance  []InstanceReport
	retried     map[string]int
	promised    []int64 // by resource: what clients were told that they have
	unknown     []int64 // and what they may have without having been told
	latencies   *hdrhistogram.Histogram
	slowest     time.Duration
	shortestTTL time.Duration // of the holds; 0: none was seen
	timeline    series
}

func newTally(o Options, resources int) *tally {
	t := &tally{
		requests: o.Requests, progress: o.Progress, retried: map[string]int{}, timeline: newSeries(),
		promised: make([]int64, resources), unknown: make([]int64, resources),
		latencies: hdrhistogram.New(1, longest, 3),
	}
	for _, url := range o.Instances {
		t.byInstance = append(t.byInstance, InstanceReport{URL: url, Outcomes: map[string]int{}})
	}
	return t
}

// next hands out the number of an attempt, from 1, as long as there are any.
func (t *tally) next() (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.handedOut == t.requests && t.requests > 0 {
		return 0, false
	}
	t.handedOut++
	return t.handedOut, true
}

// start counts an attempt that is about to be sent.
func (t *tally) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent++
}

// tardy is how far behind its time an attempt begins whose buyers were all busy. Timers alone are less.
const tardy = 10 * time.Millisecond

func (t *tally) add(o outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byInstance[o.instance].Outcomes[o.code]++
	for _, before := range o.retried {
		t.byInstance[before.instance].Retried++
		t.retried[before.code]++
	}
	for _, i := range o.wants {
		if o.code == created {
			t.promised[i]++
		} else if o.unknown {
			t.unknown[i]++
		}
	}
	if o.late > tardy {
		t.late++
		t.latest = max(t.latest, o.late)
	}
	if o.replayed {
		t.replayed++
	}
	t.timeline.add(o)
	if o.code == noAnswer {
		return
	}
	t.answered++
	_ = t.latencies.RecordValue(microseconds(o.took))
	t.slowest = max(t.slowest, o.took)
	if o.ttl > 0 && (t.shortestTTL == 0 || o.ttl < t.shortestTTL) {
		t.shortestTTL = o.ttl
	}
}

func microseconds(d time.Duration) int64 { return min(d.Microseconds(), longest) }

func (t *tally) watch(began time.Time, finished <-chan struct{}) {
	if t.progress == nil {
		return
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-finished:
			return
		case <-ticker.C:
			t.mu.Lock()
			p := Progress{Answered: t.answered, Requests: t.requests, Elapsed: time.Since(began)}
			for _, instance := range t.byInstance {
				p.Created += instance.Outcomes[created]
			}
			t.mu.Unlock()
			t.progress(p)
		}
	}
}

// percentile is in milliseconds. The histogram answers with the upper end of a bucket, which can lie beyond the largest value.
func percentile(h *hdrhistogram.Histogram, p float64, slowest time.Duration) float64 {
	return float64(min(h.ValueAtPercentile(p), microseconds(slowest))) / 1000
}

// curve has the latency at percentiles that come ever closer to all, as far as there are values enough to tell.
func (t *tally) curve() (points []Percentile) {
	if t.answered == 0 {
		return nil
	}
	const steps = 10 // to each further nine
	for i := 0; ; i++ {
		share := math.Pow(10, -float64(i)/steps) // of the attempts that are slower
		if share*float64(t.answered) < 1 {
			return append(points, Percentile{100, float64(microseconds(t.slowest)) / 1000})
		}
		p := 100 * (1 - share)
		points = append(points, Percentile{math.Round(p*1e6) / 1e6, percentile(t.latencies, p, t.slowest)})
	}
}
