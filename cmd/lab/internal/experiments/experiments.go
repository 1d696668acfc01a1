// Package experiments puts what is claimed of distributed locks to the test: on real servers, with real instances of the
// service, and with faults from outside of it.
//
// An experiment is one file: the claim, the set-up, the run, the control and the verdict. It promises that nothing is taken for
// granted: the claim is confirmed only by what was seen, and the control, the same without the remedy, has to fail for the
// reason that the claim gives. What the service has no switch for, and must not have, is done beside it: by a small client
// that does what is usually done, or by the owner of a database that only this experiment uses.
package experiments

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Experiment is one claim and how it is tested.
type Experiment struct {
	Name    string
	Claim   string
	Control string // what is done without the remedy, and what has to come of it
	Run     run
}

// All is every experiment, in the order in which one reads about locks.
var All = []Experiment{
	noLock,
	localTwoServers,
	rowLock,
	deadlock,
	poolExhaustion,
	redisLatency,
	redisExpiry,
	redisFailover,
	counterLoss,
	redlockMajority,
	redlockClock,
	zookeeperCrash,
	zookeeperPartition,
	zookeeperWatches,
	pausedHolder,
	lateWrite,
	switchStrategy,
	whichOne,
}

// Find returns the experiment of this name.
func Find(name string) (Experiment, error) {
	var known []string
	for _, e := range All {
		if e.Name == name {
			return e, nil
		}
		known = append(known, e.Name)
	}
	return Experiment{}, fmt.Errorf("%q is no experiment: name one of %s, or all", name, strings.Join(known, ", "))
}

// Result is what an experiment has found.
type Result struct {
	Name    string `json:"name"`
	Claim   string `json:"claim"`
	Control string `json:"control,omitempty"`
	// OK: all that had to be seen was seen, of the claim and of its control.
	OK        bool        `json:"ok"`
	Error     string      `json:"error,omitempty"` // why there is no verdict
	Findings  []Finding   `json:"findings"`
	Header    []string    `json:"header,omitempty"` // of the rows
	Rows      [][]string  `json:"rows,omitempty"`
	Timelines []*Timeline `json:"timelines,omitempty"`
	Bars      []Bar       `json:"bars,omitempty"`
	BarUnit   string      `json:"bar_unit,omitempty"`
	Seconds   float64     `json:"seconds"`
}

// Finding is something that had to be seen, and what was seen.
type Finding struct {
	Of   Part   `json:"of"`
	Want string `json:"want"`
	Saw  string `json:"saw"`
	OK   bool   `json:"ok"`
}

// Part is what a finding belongs to.
type Part string

// The parts of an experiment.
const (
	Claim   Part = "claim"
	Control Part = "control"
)

// Timeline is what happened when, and who believed what meanwhile.
type Timeline struct {
	Title  string  `json:"title"`
	Events []Event `json:"events"`
	Spans  []Span  `json:"spans,omitempty"`

	began time.Time
	mu    sync.Mutex
}

// Event is a moment of a timeline.
type Event struct {
	Milliseconds float64 `json:"ms"` // since the experiment began
	Who          string  `json:"who"`
	What         string  `json:"what"`
	Kind         Kind    `json:"kind"`
}

// Kind is how an event is drawn.
type Kind string

// The kinds of events.
const (
	Step    Kind = "step"
	Fault   Kind = "fault"
	Accept  Kind = "accepted"
	Refuse  Kind = "refused"
	Mistake Kind = "wrong" // what must never happen, and does in a control
)

// Span is the time in which somebody believes to have a lock.
type Span struct {
	From  float64 `json:"from_ms"`
	To    float64 `json:"to_ms"`
	Who   string  `json:"who"`
	Token string  `json:"token,omitempty"` // of his grant
}

// Bar is one of several measured values.
type Bar struct {
	Label string  `json:"label"`
	Value float64 `json:"value"`
	Part  string  `json:"part,omitempty"` // of which there may be several for a label, such as the median and the 99th percentile
}

// judge settles the result when the run is over.
func (r *Result) judge(err error, took time.Duration) {
	r.Seconds = took.Round(10 * time.Millisecond).Seconds()
	if err != nil {
		r.Error = err.Error()
	}
	claimed, controlled := false, r.Control == ""
	r.OK = err == nil
	for _, f := range r.Findings {
		r.OK = r.OK && f.OK
		claimed = claimed || f.Of == Claim
		controlled = controlled || f.Of == Control
	}
	if err == nil && !(claimed && controlled) {
		r.Error, r.OK = "the experiment has looked at nothing", false
	}
}

// Verdict is the result in a few words.
func (r *Result) Verdict() string {
	wrong := map[Part]bool{}
	for _, f := range r.Findings {
		wrong[f.Of] = wrong[f.Of] || !f.OK
	}
	switch {
	case r.Error != "":
		return "NO VERDICT"
	case wrong[Claim]:
		return "NOT CONFIRMED"
	case wrong[Control]:
		return "THE CONTROL DOES NOT FAIL AS IT SHOULD"
	}
	return "confirmed"
}
