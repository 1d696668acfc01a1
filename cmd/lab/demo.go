package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"fencepost/cmd/lab/internal/control"
	"fencepost/cmd/lab/internal/instances"
	"fencepost/cmd/lab/internal/servers"
	"fencepost/cmd/lab/internal/shop"
)

type demoCmd struct {
	Require []string `default:"postgres" enum:"postgres,redis,zookeeper" help:"Servers that must be there: postgres, redis, zookeeper."`
	Verbose bool     `help:"Print the instances' logs instead of writing them to files."`
}

// Run ends with the instances stopped in order, before their servers are.
func (c *demoCmd) Run(ctx context.Context) error {
	options := servers.Options{Getenv: os.Getenv, Require: c.Require, RequireEmpty: true}
	err := withLab(ctx, options, func(ctx context.Context, lab *servers.Lab) error {
		faults, err := control.New(ctx, lab, demoInstances)
		if err != nil {
			return unlessStopped(ctx, err)
		}
		defer faults.Close()
		address, stop, err := listen(faults)
		if err != nil {
			return err
		}
		defer stop()
		running, err := c.start(ctx, lab, faults, address)
		if err != nil {
			return unlessStopped(ctx, err)
		}
		faults.Serve(running)
		c.explain(lab, running)
		err = ended(ctx)
		return errors.Join(err, instances.Stop(context.WithoutCancel(ctx), running))
	})
	return exceptSignal(err)
}

const demoInstances = 3

// listen serves the faults to the instances, and to nobody beyond this machine.
func listen(faults http.Handler) (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	own := listener.Addr().String()
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != own { // a web site whose name leads to 127.0.0.1 (DNS rebinding) is still called by its name
			http.Error(w, "another host's name", http.StatusMisdirectedRequest)
			return
		}
		faults.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: guarded, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }() // until it is closed
	return "http://" + own, func() { _ = server.Close() }, nil
}

// start builds the service and brings up three instances of it that have something to sell.
func (c *demoCmd) start(ctx context.Context, lab *servers.Lab, faults *control.Control, address string) ([]*instances.Instance, error) {
	fmt.Fprintln(os.Stderr, "Building the service; the first time takes a minute or two.")
	binary, err := instances.Build(ctx, lab)
	if err != nil {
		return nil, err
	}
	if err := instances.Migrate(ctx, lab, binary); err != nil {
		return nil, err
	}
	addresses, err := demoAddresses(lab)
	if err != nil {
		return nil, err
	}
	config := instances.Config{
		Binary: binary, Addresses: addresses, EnvOf: faults.Env,
		// Leases that end while somebody watches, and a wait for them that does not end before.
		Env: []string{"FENCEPOST_DEMO=on", "FENCEPOST_LAB_URL=" + address, "FENCEPOST_LEASE_TTL=2s", "FENCEPOST_LOCK_WAIT=10s"},
	}
	if c.Verbose {
		config.Output = os.Stderr
	}
	running, err := instances.Start(ctx, lab, config)
	if err != nil {
		return nil, err
	}
	if err := seed(ctx, running[0].URL); err != nil {
		return nil, errors.Join(fmt.Errorf("seed: %w", err), instances.Stop(context.WithoutCancel(ctx), running))
	}
	return running, nil
}

func (c *demoCmd) explain(lab *servers.Lab, running []*instances.Instance) {
	fmt.Println()
	for i, instance := range running {
		fmt.Printf("instance %d  %s\n", i+1, instance.URL)
	}
	if !c.Verbose {
		fmt.Printf("their logs  %s/instance-*.log\n", lab.Dir())
	}
	fmt.Printf("\nOpen the page:    %s/\n", running[0].URL)
	fmt.Printf("Reserve an item:  curl -i -X POST %s/v1/items/concert-ticket/reservations "+
		"-H 'Content-Type: application/json' -d '{\"quantity\":1}'\n", running[0].URL)
	fmt.Printf("Break it:         go run ./cmd/lab load --url %s --strategy none --fencing off\n", running[0].URL)
	fmt.Println("Ctrl-C stops everything and removes its data.")
}

// demoAddresses prefers a port that people can remember for the first instance.
func demoAddresses(lab *servers.Lab) ([]string, error) {
	const wellKnown = "127.0.0.1:8080"
	addresses := make([]string, demoInstances)
	for i := range addresses {
		var err error
		if addresses[i], err = lab.FreeAddress(); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", wellKnown)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is taken; the first instance listens on %s instead.\n", wellKnown, addresses[0])
		return addresses, nil
	}
	addresses[0] = wellKnown
	return addresses, listener.Close()
}

// seed creates the item that the curl line asks for, under the configured lock. The page and the load generator create
// their own.
func seed(ctx context.Context, url string) error {
	item := map[string]any{"sku": "concert-ticket", "name": "Concert ticket", "stock": 100}
	var told json.RawMessage
	answer := shop.Exchange(ctx, http.MethodPost, url+"/v1/items", item, &told)
	if answer.Err == nil && answer.Status != http.StatusCreated {
		return fmt.Errorf("POST %s/v1/items answers %d %s: %s", url, answer.Status, http.StatusText(answer.Status), told)
	}
	return answer.Err
}
