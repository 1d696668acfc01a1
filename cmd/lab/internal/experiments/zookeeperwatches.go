package experiments

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"

	"fencepost/cmd/lab/internal/report"
	"fencepost/cmd/lab/internal/servers"
)

var zookeeperWatches = Experiment{
	Name:    "zookeeper-watches",
	Claim:   "Those who wait for a ZooKeeper lock do not poll: a hundred of them ask the ensemble for next to nothing, and each release wakes exactly one.",
	Control: "A hundred clients that look every 20 ms whether it is their turn ask all the time, as fast as the machine lets them.",
	Run:     runZookeeperWatches,
}

const waiters = 100

func runZookeeperWatches(ctx context.Context, r *Run) error {
	window := 2 * time.Second
	if r.short {
		window = time.Second
	}
	// MAX_BATCH: or those who wait in one instance would share one place in the line.
	instance, err := r.startOne(ctx, "FENCEPOST_INVENTORY_LOCK=zookeeper", "FENCEPOST_MAX_BATCH=1", "FENCEPOST_LOCK_WAIT=14s")
	if err != nil {
		return err
	}
	sku, err := r.item(ctx, instance, 1000, "", enforced)
	if err != nil {
		return err
	}
	conn, err := r.zookeeper()
	if err != nil {
		return err
	}
	if _, err := mustBuy(ctx, instance, sku); err != nil { // which makes the queue
		return err
	}
	// We have the lock, and a hundred requests wait for it.
	ours, err := r.stand(conn, sku, zk.FlagSequence|zk.FlagEphemeral)
	if err != nil {
		return err
	}
	r.say("a hundred requests wait")
	base, _, err := r.packets(ctx)
	if err != nil {
		return err
	}
	answers := make([]<-chan sale, waiters)
	for i := range answers {
		answers[i] = buyAside(ctx, instance, sku)
	}
	looks := int64(0) // which ZooKeeper counts as well
	err = until(ctx, "each has made its node, looked for it and at the line, and set its watch", func() (bool, error) {
		looks++
		received, _, err := r.packets(ctx)
		return received-base-looks >= 4*waiters, err
	})
	if err != nil {
		return err
	}
	line, _, err := conn.Children(queueOf(sku))
	if err != nil || len(line) != waiters+1 {
		return fmt.Errorf("%d stand in line, not %d (%w)", len(line), waiters+1, err)
	}
	quiet, err := r.traffic(ctx, window)
	if err != nil {
		return err
	}

	r.say("the lock is released, by one after the other")
	received, sent, err := r.packets(ctx)
	if err != nil {
		return err
	}
	if err := conn.Delete(ours, -1); err != nil {
		return err
	}
	for _, answer := range answers {
		s, err := await(ctx, "a waiter's answer", answer)
		if err != nil {
			return err
		}
		if !s.made() {
			return fmt.Errorf("a waiter is answered %w", s.failure())
		}
	}
	receivedThen, sentThen, err := r.packets(ctx)
	if err != nil {
		return err
	}
	received, sent = receivedThen-received, sentThen-sent
	requests := float64(received) / waiters
	woken := float64(sent-received) / waiters // what was sent without having been asked for

	r.say("the control: a hundred clients that poll")
	polling, err := r.poll(ctx, conn, sku, window)
	if err != nil {
		return err
	}
	perSecond := func(p int64) float64 { return float64(p) / window.Seconds() }
	r.Header = []string{"a hundred clients", "requests a second while they wait", "requests for each release", "woken by each release"}
	r.row("that watch", report.Number(perSecond(quiet)), report.Number(requests), report.Number(woken))
	r.row("that poll", report.Number(perSecond(polling)), "–", "–")
	r.BarUnit = "requests a second that ZooKeeper gets while a hundred wait"
	r.bar("watching", "", perSecond(quiet))
	r.bar("polling", "", perSecond(polling))
	r.claims(perSecond(quiet) < waiters/10, "while a hundred wait, ZooKeeper gets less than ten requests a second", "%.1f requests a second", perSecond(quiet))
	r.claims(woken > 0.8 && woken < 1.2, "each release wakes one", "%.2f are woken by each of %d releases, which takes %.1f requests", woken, waiters, requests)
	// They ask for five thousand. A busy machine comes to fewer, but not to as few as the claim allows.
	r.controls(perSecond(polling) > waiters, "a hundred that poll send more than a hundred requests a second", "%.0f requests a second", perSecond(polling))
	return nil
}

// poll is a hundred clients that stand in line, and look every 20 ms whether it is their turn. It never is.
func (r *Run) poll(ctx context.Context, conn *zk.Conn, sku string, window time.Duration) (requests int64, err error) {
	for range waiters + 1 {
		if _, err := r.stand(conn, sku, zk.FlagSequence|zk.FlagEphemeral); err != nil {
			return 0, err
		}
	}
	polling, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	for range waiters {
		group.Go(func() error {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-polling.Done():
					return nil
				}
				if _, _, err := conn.Children(queueOf(sku)); err != nil {
					return err
				}
			}
		})
	}
	requests, err = r.traffic(ctx, window)
	stop()
	return requests, errors.Join(err, group.Wait())
}

// traffic is how many requests ZooKeeper gets in so much time.
func (r *Run) traffic(ctx context.Context, window time.Duration) (requests int64, err error) {
	before, _, err := r.packets(ctx)
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(window):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	after, _, err := r.packets(ctx)
	return after - before, err
}

// packets is what ZooKeeper has received and sent so far.
func (r *Run) packets(ctx context.Context) (received, sent int64, err error) {
	return servers.Packets(ctx, r.lab.Variable("FENCEPOST_ZOOKEEPER_SERVERS"))
}
