package servers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const ensembleSize = 3

// StartZooKeeper starts a single one beside the laboratory's own, under a name that must be unused.
func (l *Lab) StartZooKeeper(ctx context.Context, name string) (*Server, error) {
	programs, ok := l.findZooKeeper()
	if !ok {
		return nil, errors.New("there is no ZooKeeper to start: " + mend)
	}
	return l.launchZooKeeper(ctx, programs, name, nil)
}

// Ensemble is three ZooKeeper servers that elect one of them as their leader, and go on when any one of them is gone.
type Ensemble struct {
	Members []*Server
}

// StartEnsemble starts an ensemble and returns when it has a leader. It is for tests and experiments: the laboratory's own
// ZooKeeper is a single one, which starts sooner.
func (l *Lab) StartEnsemble(ctx context.Context) (*Ensemble, error) {
	programs, ok := l.findZooKeeper()
	if !ok {
		return nil, errors.New("there is no ZooKeeper to make an ensemble of: " + mend)
	}
	config := []string{
		// In ticks: how long a server may take to join, and how long the leader and the others do without one another.
		"initLimit=20",
		"syncLimit=4",
	}
	for i := range ensembleSize {
		quorum, err := l.freePort()
		if err != nil {
			return nil, err
		}
		election, err := l.freePort()
		if err != nil {
			return nil, err
		}
		config = append(config, fmt.Sprintf("server.%d=127.0.0.1:%d:%d", i+1, quorum, election))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the ensemble was not ready within %s", startTimeout))
	defer cancel()
	e := &Ensemble{Members: make([]*Server, ensembleSize)}
	group, ctx := errgroup.WithContext(ctx)
	for i := range e.Members {
		group.Go(func() (err error) { // side by side: none is ready without another
			e.Members[i], err = l.launchZooKeeper(ctx, programs, fmt.Sprintf("%s-%d", ZooKeeper, i+1), config)
			return err
		})
	}
	return e, group.Wait()
}

// Addresses is the value of FENCEPOST_ZOOKEEPER_SERVERS.
func (e *Ensemble) Addresses() string {
	var all []string
	for _, m := range e.Members {
		all = append(all, m.Address)
	}
	return strings.Join(all, ",")
}

// Leader waits until a majority of the members agree who leads, and returns the leader and the others. Of a member that is
// down or paused nothing is heard, so it is among the others.
func (e *Ensemble) Leader(ctx context.Context) (leader *Server, others []*Server, err error) {
	for {
		if leader, others = e.look(ctx); leader != nil {
			return leader, others, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("the ensemble has no leader: %w", context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e *Ensemble) look(ctx context.Context) (leader *Server, others []*Server) {
	modes := make([]string, len(e.Members))
	var group errgroup.Group
	for i, m := range e.Members {
		group.Go(func() error {
			answer, _ := fourLetters(ctx, m.Address, "srvr") // no answer is no mode
			modes[i] = mode(answer)
			return nil
		})
	}
	_ = group.Wait()
	serving, leaders := 0, 0
	for i, m := range e.Members {
		switch modes[i] {
		case "leader":
			leader = m
			leaders++
			serving++
			continue
		case "follower":
			serving++
		}
		others = append(others, m)
	}
	if leaders != 1 || serving <= len(e.Members)/2 {
		return nil, nil
	}
	return leader, others
}
