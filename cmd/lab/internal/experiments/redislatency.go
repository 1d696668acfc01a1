package experiments

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"fencepost/cmd/lab/internal/instances"
)

var redisLatency = Experiment{
	Name:  "redis-latency",
	Claim: "Redis is the lock with the least latency: taking it and giving it back takes less time than with ZooKeeper, Redlock or a row lock of PostgreSQL.",
	Run:   runRedisLatency,
}

// runRedisLatency has cmd/latency measure, which takes the locks of the service without the service around them.
func runRedisLatency(ctx context.Context, r *Run) error {
	rounds := 1000
	if r.short {
		rounds = 100
	}
	r.say("building the program that measures")
	binary, err := instances.BuildProgram(ctx, r.lab, "", "fencepost/cmd/latency")
	if err != nil {
		return err
	}
	r.say(fmt.Sprintf("%d rounds", rounds))
	cmd := exec.CommandContext(ctx, binary, "-json", fmt.Sprintf("-rounds=%d", rounds))
	cmd.Env = append(append(os.Environ(), r.lab.Env()...), r.database.Env()...)
	output, err := instances.Run(r.lab, cmd)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, output)
	}
	var figures []struct {
		Strategy string
		P50      float64 `json:"lock_and_release_p50_ms"`
		P99      float64 `json:"lock_and_release_p99_ms"`
	}
	if err := json.Unmarshal([]byte(output), &figures); err != nil {
		return fmt.Errorf("%w in %q", err, output)
	}
	r.Header = []string{"lock", "median", "p99"}
	r.BarUnit = "milliseconds to take an uncontended lock and give it back"
	medians := map[string]float64{}
	for _, f := range figures {
		if f.Strategy == "local" { // which is no lock between servers
			continue
		}
		medians[f.Strategy] = f.P50
		r.row(f.Strategy, fmt.Sprintf("%.3f ms", f.P50), fmt.Sprintf("%.3f ms", f.P99))
		r.bar(f.Strategy, "median", f.P50)
		r.bar(f.Strategy, "p99", f.P99)
	}
	for _, other := range []string{"postgres", "redlock", "zookeeper"} {
		r.claims(medians["redis"] > 0 && medians["redis"] < medians[other], "redis is faster than "+other,
			"medians: %.3f ms and %.3f ms", medians["redis"], medians[other])
	}
	return nil
}
