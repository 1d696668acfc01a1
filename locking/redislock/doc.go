// Package redislock is two strategies: redis, a lease on one Redis, which may be a server, the master that Sentinels name, or
// a Cluster; and redlock, a lease on a majority of several independent servers, its nodes.
//
// Both promise that a token is issued with the lock and, while the servers keep what they are told, never again, that a lock is
// released and extended only by the grant that took it, and that a waiter costs the servers nothing while the lock is held: it
// is woken by the release, or by the end of the term if the holder is gone. (With redlock, waiters that come from several
// instances at once may each take a part of the nodes. Nobody has the lock then, and each tries again after a short random
// pause.) They do not promise that a holder still has the lock when it thinks so: Redis expires keys by its wall clock, and a
// failover or a flush forgets them. The fence in PostgreSQL is there for that.
//
// # The token of redlock
//
// With one server, lock and counter change in one script. Several servers have no counter in common, and the Redlock
// description offers no number that could serve as one. Here each node keeps, beside the lock, a number that never expires,
// and a grant is made in two phases:
//
//  1. Every node is asked for its lock. If the lock is free, or already this try's, the node sets it with the term, and
//     answers its number. From the numbers of a majority follows the token: t = 1 + the largest of them.
//  2. The nodes that have granted are asked to store t. A node does so, and acknowledges, if its lock still is this try's
//     and t is larger than its number.
//
// The grant counts when a majority has acknowledged and enough of the term is left. Otherwise everything is given back, and
// there is another try, under another owner's id.
//
// # Why no token is issued twice
//
// Suppose that two grants count, with tokens s and t. Each was stored by a majority of the nodes, and two majorities share a
// node. That node has stored both, one after the other. When it stored the second, its number was at least the first, since
// a number only rises; and it stored the second because that was larger. So s and t differ.
//
// # Why a later grant has the larger token
//
// Let one grant count with token s, and let another try begin after that. A majority had stored s before the try began, and
// the token t of the try follows from the answers of a majority. The two share a node; it was asked after it had stored s,
// so it answered s or more, and t is at least s + 1.
//
// (Of two tries that overlap, either may get the larger token, and they may count in the other order. That is harmless: the
// fence lets the smaller one write before the larger one or not at all.)
//
// # What the arguments rest on
//
// No clock appears in them. A lock that expires early, late, or under its holder can make a try fail, or leave two holders
// that believe in their leases; it cannot make two tokens equal. Nor do messages: one that is lost is an answer that does
// not come. A second copy of phase 1 is granted and answered like the first, or refused. A second copy of phase 2 is
// refused, because its token is not larger any more, and a refusal is taken for no acknowledgement. A copy that comes late
// meets a lock that is another's or a number that is larger, or else it does what it would have done in time. For the same
// reason a node counts once, however often it answers.
//
// They rest on nodes that keep their numbers and on majorities of one set of nodes. A node that comes back empty, or a
// changed list of servers, breaks them. Then a token may be repeated or smaller: the fence refuses it, or, where the older
// grant has not written, lets the newer one write first; a fresh grant that is refused makes its authority raise the epoch.
//
// That phase 2 asks for the lock is not needed for the tokens. It is for exclusion: a client that was slow must not count
// with a lock that others have by now.
//
// The model test goes through every order of events for three nodes, with the client's part in production code and the
// node's part held to the scripts. It also shows that a token is repeated as soon as "larger" is left out of phase 2, or a
// minority is enough.
package redislock
