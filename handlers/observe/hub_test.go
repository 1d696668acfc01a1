package observe_test

import (
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fencepost/domain"
	"fencepost/handlers/observe"
)

func numbered(n int) domain.Event { return domain.Event{Kind: domain.EventKind(strconv.Itoa(n))} }

func TestReadersReadOn(t *testing.T) {
	t.Parallel()
	h := observe.NewHub(4)
	last := h.Last()
	events, lost, wake := h.Read(last, make([]domain.Event, 0, 2))
	require.Empty(t, events)
	require.False(t, lost)
	for n := range 4 {
		h.Publish(numbered(n))
	}
	<-wake
	for n := 0; n < 4; n += 2 {
		events, lost, wake = h.Read(last, make([]domain.Event, 0, 2))
		require.False(t, lost)
		require.Nil(t, wake)
		require.Equal(t, []domain.Event{numbered(n), numbered(n + 1)}, events)
		last += 2
	}
	require.Equal(t, h.Last(), last)

	_, lost, _ = h.Read(0, make([]domain.Event, 0, 2))
	require.False(t, lost, "the oldest event is still kept")
	h.Publish(numbered(4))
	events, lost, _ = h.Read(0, make([]domain.Event, 0, 2))
	require.True(t, lost)
	require.Empty(t, events)
}

func TestPositions(t *testing.T) {
	t.Parallel()
	h, other := observe.NewHub(4), observe.NewHub(4)
	h.Publish(numbered(0))
	other.Publish(numbered(0))
	position, err := h.Position(h.ID(1))
	require.NoError(t, err)
	require.EqualValues(t, 1, position)
	_, err = h.Position(h.ID(0))
	require.NoError(t, err, "before the first event")
	for _, id := range []string{other.ID(1), h.ID(2), h.ID(1) + "0", "", "-", "1", "-1", h.ID(1)[:4]} {
		_, err := h.Position(id)
		assert.Error(t, err, id)
	}
}

// Each reader sees every event once and in order, or is told that it has missed some.
func TestManyReaders(t *testing.T) {
	t.Parallel()
	const publishers, each = 4, 5000
	for _, size := range []int{8, publishers * each} {
		h := observe.NewHub(size)
		var readers, writers sync.WaitGroup
		var missed sync.Map
		for reader := range 8 {
			last := h.Last()
			readers.Go(func() {
				batch := make([]domain.Event, 0, 16)
				newest := make([]int, publishers)
				seen := 0
				for {
					events, lost, wake := h.Read(last, batch)
					if lost {
						missed.Store(reader, true)
						last = h.Last()
						continue
					}
					for _, e := range events {
						n, _ := strconv.Atoi(string(e.Kind))
						publisher, n := n%publishers, n/publishers
						if n < newest[publisher] {
							t.Errorf("event %d of publisher %d after %d", n, publisher, newest[publisher])
						}
						newest[publisher] = n + 1
						seen++
						last++
					}
					if wake == nil {
						continue
					}
					select {
					case <-wake:
					case <-h.Closed():
						if last != h.Last() {
							continue
						}
						if _, gap := missed.Load(reader); !gap && seen != publishers*each {
							t.Errorf("reader %d has seen %d of %d events and was told of no gap", reader, seen, publishers*each)
						}
						return
					}
				}
			})
		}
		for publisher := range publishers {
			writers.Go(func() {
				for n := range each {
					h.Publish(numbered(n*publishers + publisher))
				}
			})
		}
		writers.Wait()
		h.Close()
		h.Close()
		readers.Wait()
		if size == publishers*each {
			missed.Range(func(any, any) bool { t.Error("nothing can have been missed"); return false })
		}
	}
}

var section = domain.Event{Kind: domain.EventSection, Grants: []domain.Grant{{Key: "item/lamp", Strategy: "redis", Epoch: 1, Token: 1}}}

// What a section costs more when nobody listens.
func BenchmarkPublish(b *testing.B) {
	h := observe.NewHub(8192)
	b.ReportAllocs()
	for b.Loop() {
		h.Publish(section)
	}
}

func BenchmarkPublishInParallel(b *testing.B) {
	h := observe.NewHub(8192)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Publish(section)
		}
	})
}

func BenchmarkCount(b *testing.B) {
	m := observe.NewMetrics(func(error) string { return "committed" })
	b.ReportAllocs()
	for b.Loop() {
		m.Event(section)
	}
}
