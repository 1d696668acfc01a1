package observe

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"fencepost/domain"
)

// Hub keeps the newest events of this instance for any number of readers. Each reader remembers where it is and reads on from
// there; one that is too slow finds that what it wanted is gone. So a publisher does not know the readers, and nothing is
// kept for each of them.
type Hub struct {
	life string // this hub's among all of all instances

	mu     sync.Mutex
	ring   []domain.Event // event n is at n modulo the length
	next   uint64         // number of the next event
	wake   chan struct{}  // closed at the next event; nil when nobody waits for it
	closed chan struct{}
}

// Positions of readers are numbers of events. The first event has number 1, so that 0 is before all of them.
const firstEvent = 1

// NewHub makes a hub that keeps so many events.
func NewHub(size int) *Hub {
	return &Hub{life: rand.Text(), ring: make([]domain.Event, size), next: firstEvent, closed: make(chan struct{})}
}

// Publish hands an event to the readers. It waits for none of them.
func (h *Hub) Publish(e domain.Event) {
	h.mu.Lock()
	h.ring[h.next%uint64(len(h.ring))] = e
	h.next++
	if h.wake != nil {
		close(h.wake)
		h.wake = nil
	}
	h.mu.Unlock()
}

// Close tells the readers that this instance is going. Publishing stays allowed.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closed:
	default:
		close(h.closed)
	}
}

// Closed is closed by Close.
func (h *Hub) Closed() <-chan struct{} { return h.closed }

// Last is the number of the newest event: where a reader begins that does not ask for older ones.
func (h *Hub) Last() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.next - 1
}

// Read appends events after number last to batch, up to its capacity. lost means that the next ones are not kept any more;
// nothing is appended then. If there is no event yet, wake is closed at the next one; otherwise it is nil.
func (h *Hub) Read(last uint64, batch []domain.Event) (events []domain.Event, lost bool, wake <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last+1 == h.next {
		if h.wake == nil {
			h.wake = make(chan struct{})
		}
		return batch, false, h.wake
	}
	if h.next-(last+1) > uint64(len(h.ring)) {
		return batch, true, nil
	}
	for n := last + 1; n < h.next && len(batch) < cap(batch); n++ {
		batch = append(batch, h.ring[n%uint64(len(h.ring))])
	}
	return batch, false, nil
}

// ID is what a client calls event n, and shows again to read on behind it.
func (h *Hub) ID(n uint64) string { return h.life + "-" + strconv.FormatUint(n, 10) }

// Position is the number in an ID. It is an error if the ID is not of an event of this hub, and with that of this life of this
// instance.
func (h *Hub) Position(id string) (uint64, error) {
	life, number, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if life != h.life || err != nil || n > h.Last() {
		return 0, fmt.Errorf("%.64q is no event of this instance", id)
	}
	return n, nil
}
