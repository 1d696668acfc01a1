package bench

import (
	"fmt"
	"slices"
	"strings"

	"fencepost/cmd/lab/internal/report"
)

// Contender is one thing that is measured: a strategy of the service, or a peer.
type Contender struct {
	Name string
	// Family is what the contender shares with those it is compared with.
	Family string
	// Peers are what a strategy is compared with, the closest first. A contender without is one.
	Peers []string
	// What a strategy that excludes too little can stand: beyond it, its answers are wrong. 0 is no bound.
	mostClients, mostInstances int
}

// Contenders are the strategies, each followed by its own peers, so that those who are compared run close together.
var Contenders = []Contender{
	{Name: "none", Family: "none", Peers: []string{"pgx-update"}, mostClients: 1},
	{Name: "local", Family: "local", Peers: []string{"pgx-update"}, mostInstances: 1},
	{Name: "pgx-update", Family: "none"},
	{Name: "postgres", Family: "postgres", Peers: []string{"pgx-for-update", "pgx-advisory", "pgx-update"}},
	{Name: "pgx-for-update", Family: "postgres"},
	{Name: "pgx-advisory", Family: "postgres"},
	{Name: "redis", Family: "redis", Peers: []string{"bsm-redislock", "redsync-1", "pgx-update"}},
	{Name: "bsm-redislock", Family: "redis"},
	{Name: "redsync-1", Family: "redis"},
	{Name: "redlock", Family: "redlock", Peers: []string{"redsync-5"}},
	{Name: "redsync-5", Family: "redlock"},
	{Name: "zookeeper", Family: "zookeeper", Peers: []string{"go-zookeeper"}},
	{Name: "go-zookeeper", Family: "zookeeper"},
}

// Ours tells a strategy from a peer.
func (c Contender) Ours() bool { return len(c.Peers) > 0 }

func (c Contender) fits(s Scenario) bool {
	return (c.mostClients == 0 || s.Clients <= c.mostClients) && (c.mostInstances == 0 || s.Instances <= c.mostInstances)
}

// fenced tells whether the strategy issues tokens.
func (c Contender) fenced() bool { return c.Name != "none" && c.Name != "local" }

// Find returns the contenders of those names in the order of the table; no names are all of them.
func Find(names []string) ([]Contender, error) {
	if len(names) == 0 {
		return Contenders, nil
	}
	var found []Contender
	var known []string
	for _, c := range Contenders {
		known = append(known, c.Name)
		if slices.Contains(names, c.Name) {
			found = append(found, c)
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("%q is no contender: name one of %s", name, strings.Join(known, ", "))
		}
	}
	return found, nil
}

// Scenario is what a contender is put through.
type Scenario struct {
	Clients   int `json:"clients"`
	Items     int `json:"items"`
	Instances int `json:"instances"`
	// Growth: in a database that has so many Stored reservations before the first measurement.
	Growth bool `json:"growth"`
	Stored int  `json:"stored"`
}

const (
	crowd   = 64   // clients, where their number is not what is varied
	waiting = 1000 // clients, more than one instance of the service lets in
	spread  = 1000 // items
)

// MostClients is how many requests one instance of the service serves at the same time.
const MostClients = 512

// Scenarios returns the standard ones: a hot item with each number of clients, many items, several instances, a thousand
// clients, and growth if there are numbers of stored reservations.
func Scenarios(clients, stored []int) []Scenario {
	var all []Scenario
	for _, n := range clients {
		all = append(all, Scenario{Clients: n, Items: 1, Instances: 1})
	}
	all = append(all,
		Scenario{Clients: crowd, Items: spread, Instances: 1},
		Scenario{Clients: crowd, Items: 1, Instances: 2},
		Scenario{Clients: crowd, Items: 1, Instances: 3},
		Scenario{Clients: waiting, Items: 1, Instances: 3})
	if len(stored) == 0 {
		return all
	}
	stored = slices.Compact(slices.Sorted(slices.Values(append([]int{0}, stored...))))
	for _, items := range []int{1, spread} {
		for _, n := range stored {
			all = append(all, Scenario{Clients: crowd, Items: items, Instances: 1, Growth: true, Stored: n})
		}
	}
	return all
}

func (s Scenario) String() string {
	text := "hot item"
	if s.Items > 1 {
		text = report.Number(float64(s.Items)) + " items"
	}
	text += ", " + report.Plural(s.Clients, "client") + ", " + report.Plural(s.Instances, "instance")
	if s.Growth {
		text += ", " + report.Number(float64(s.Stored)) + " stored"
	}
	return text
}
