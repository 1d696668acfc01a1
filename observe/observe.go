// Package observe is what is seen of an instance from outside: metrics, and a stream of events. Both are fed with the events
// of package domain and can be switched off without anything else changing.
//
// It promises never to hold up what it watches: counting and publishing wait for nobody, memory is bounded, and no label of a
// metric comes from what a client sent.
package observe
