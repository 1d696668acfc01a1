package load

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPace(t *testing.T) {
	t.Parallel()
	steady := pace{rate: 200}
	assert.Equal(t, time.Duration(0), steady.due(0))
	assert.Equal(t, 5*time.Millisecond, steady.due(1))
	assert.Equal(t, time.Second, steady.due(200))

	rising := pace{rate: 100, ramp: 2 * time.Second} // 100 attempts in the ramp
	assert.Equal(t, time.Second, rising.due(25), "a quarter of them in its first half")
	assert.Equal(t, 2*time.Second, rising.due(100))
	assert.Equal(t, 3*time.Second, rising.due(200))

	for _, p := range []pace{steady, rising, {rate: 0.3}, {rate: 7, ramp: 13 * time.Second}, {rate: 100_000, ramp: time.Millisecond}} {
		for _, d := range []time.Duration{time.Millisecond, time.Second, 1234 * time.Millisecond, 20 * time.Second} {
			n := p.within(d)
			assert.GreaterOrEqual(t, p.due(n), d, "%+v, %s", p, d)
			if n > 0 {
				assert.Less(t, p.due(n-1), d, "%+v, %s", p, d)
			}
		}
		for n := range 300 {
			assert.Less(t, p.due(n), p.due(n+1))
		}
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	for try := range 100 {
		assert.GreaterOrEqual(t, backoff(try, answer{}), 50*time.Millisecond)
		assert.LessOrEqual(t, backoff(try, answer{}), time.Second)
		assert.GreaterOrEqual(t, backoff(try, answer{retryAfter: 3 * time.Second}), 3*time.Second, "as long as the service says")
	}
}

// However long a race is, its series counts everything, in no more spans than a plot has room for.
func TestSeries(t *testing.T) {
	t.Parallel()
	for _, length := range []time.Duration{time.Millisecond, time.Second, 17 * time.Second, 3 * time.Hour} {
		s := newSeries()
		const n = 2000
		for i := range n {
			code := created
			if i%4 == 0 {
				code = noAnswer
			}
			// The first comes last, as with concurrent buyers.
			s.add(outcome{code: code, ended: length * time.Duration((i+1)%n) / n, took: time.Duration(i+1) * time.Microsecond})
		}
		counts := map[string]int{}
		moments := s.moments()
		for i, m := range moments {
			assert.InDelta(t, float64(i)*s.width.Seconds(), m.Second, 1e-9)
			assert.LessOrEqual(t, m.P50, m.P99)
			for code, count := range m.Outcomes {
				counts[code] += count
			}
		}
		assert.Equal(t, map[string]int{created: n * 3 / 4, noAnswer: n / 4}, counts)
		assert.LessOrEqual(t, len(moments), mostSpans)
		assert.GreaterOrEqual(t, time.Duration(len(moments))*s.width, length-s.width)
		if length > time.Second {
			assert.GreaterOrEqual(t, len(moments), mostSpans/2)
		}
	}
}
