package zklock

import (
	"sync"

	"github.com/go-zookeeper/zk"
)

// deletions sends the deletions of nodes to the servers together: those that come while a request is under way are the next one.
// With many cold keys a server has half of its work with locks that are given back, and it is the request that is the
// work, not what is in it. A deletion that finds none under way goes at once.
type deletions struct {
	conn func() *zk.Conn

	mu      sync.Mutex
	waiting []deletion
	serving bool
}

type deletion struct {
	node string
	done chan error
}

// A request must not become longer than the servers accept, which is a megabyte by default.
const maxDeletions = 1000

// send deletes a node as zk.Conn does.
func (d *deletions) send(node string) error {
	one := deletion{node, make(chan error, 1)}
	d.mu.Lock()
	d.waiting = append(d.waiting, one)
	if !d.serving {
		d.serving = true
		go d.serve()
	}
	d.mu.Unlock()
	return <-one.done
}

func (d *deletions) serve() {
	for {
		d.mu.Lock()
		n := min(len(d.waiting), maxDeletions)
		batch := d.waiting[:n:n]
		d.waiting = d.waiting[n:]
		d.serving = n > 0
		d.mu.Unlock()
		switch n {
		case 0:
			return
		case 1:
			batch[0].done <- d.conn().Delete(batch[0].node, -1)
		default:
			d.together(batch)
		}
	}
}

// together deletes all of the nodes, or, if one of them is not there, none: then each goes by itself, and has an answer of its own.
func (d *deletions) together(batch []deletion) {
	requests := make([]any, len(batch))
	for i, one := range batch {
		requests[i] = &zk.DeleteRequest{Path: one.node, Version: -1}
	}
	answers, err := d.conn().Multi(requests...)
	if uncertain(err) {
		for _, one := range batch {
			one.done <- err
		}
		return
	}
	failed := err != nil || len(answers) != len(batch)
	for _, answer := range answers {
		failed = failed || answer.Error != nil
	}
	for _, one := range batch {
		if failed {
			go func() { one.done <- d.conn().Delete(one.node, -1) }()
		} else {
			one.done <- nil
		}
	}
}
