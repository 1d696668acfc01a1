// Package observe is what is seen of an instance from outside: metrics, a stream of events, and traces. The first two are fed
// with the events of package domain.
//
// It promises never to hold up what it watches: counting and publishing wait for nobody, memory is bounded, and no label of a
// metric comes from what a client sent.
package observe
