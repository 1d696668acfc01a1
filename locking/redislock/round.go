package redislock

import "fencepost/domain"

// majority is how many of n nodes are needed, so that any two such groups share one.
func majority(n int) int { return n/2 + 1 }

// round is one try to get a lock from the nodes: what they have answered, and what follows from it. It does no input or
// output, so that the model test can run this very code against every order of messages.
type round struct {
	quorum int
	token  domain.Token // 0 until a quorum has granted
	newest domain.Token // the largest number that a node has told before that
	states []state
}

// state is what is known of one node.
type state uint8

const (
	asked        state = iota // phase 1 is under way
	granted                   // it has granted, and there is no token yet
	confirming                // phase 2 is under way
	acknowledged              // it has stored the token
	refused                   // its lock is somebody else's
	failed                    // it has not answered, or did not acknowledge
)

func newRound(nodes, quorum int) round {
	return round{quorum: quorum, states: make([]state, nodes)}
}

// grant takes in that a node has granted in phase 1, and its number. It returns the nodes to which phase 2 goes now: with
// the grant that completes the quorum, all that have granted; with a later one, that node alone. A copy of an answer that
// was taken in before changes nothing.
func (r *round) grant(node int, number domain.Token) (confirm []int) {
	if r.states[node] != asked {
		return nil
	}
	r.states[node] = granted
	if r.token == 0 {
		r.newest = max(r.newest, number)
		if r.count(granted) < r.quorum {
			return nil
		}
		r.token = r.newest + 1
	}
	for node, s := range r.states {
		if s == granted {
			r.states[node] = confirming
			confirm = append(confirm, node)
		}
	}
	return confirm
}

// acknowledge takes in that a node has stored the token.
func (r *round) acknowledge(node int) {
	if r.states[node] == confirming {
		r.states[node] = acknowledged
	}
}

// refuse and fail take in that a node will not be part of this try.
func (r *round) refuse(node int) { r.states[node] = refused }
func (r *round) fail(node int)   { r.states[node] = failed }

// won: the grant counts. lost: it never will.
func (r *round) won() bool { return r.count(acknowledged) >= r.quorum }

func (r *round) lost() bool {
	return len(r.states)-r.count(refused)-r.count(failed) < r.quorum
}

func (r *round) count(s state) (n int) {
	for _, have := range r.states {
		if have == s {
			n++
		}
	}
	return n
}
