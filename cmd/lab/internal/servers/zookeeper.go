package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func (l *Lab) zookeeper(ctx context.Context) ([]*Server, error) {
	if given := l.getenv(zookeeperServers); given != "" {
		server, err := givenZooKeeper(ctx, given)
		return []*Server{server}, err
	}
	java := l.java()
	jars := l.findBelow("share/java/zookeeper.jar", "opt/zookeeper/libexec/lib/zookeeper-[0-9]*.jar")
	if java == "" || jars == "" {
		return []*Server{{Name: ZooKeeper, Source: "unavailable", Detail: mend}}, nil
	}
	server, err := l.privateZooKeeper(ctx, java, filepath.Dir(jars))
	return []*Server{server}, err
}

// givenZooKeeper wants an answer from one server: an ensemble works while some of its servers are down.
func givenZooKeeper(ctx context.Context, servers string) (*Server, error) {
	var errs []error
	for address := range strings.SplitSeq(servers, ",") {
		address = strings.TrimSpace(address)
		answer, err := fourLetters(ctx, address, "srvr")
		if err == nil {
			return &Server{
				Name: ZooKeeper, Version: zookeeperVersion(answer), Address: servers, Source: "given",
				Detail: zookeeperServers, env: []string{zookeeperServers + "=" + servers},
			}, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%s: no server answers: %w: start one, or unset the variable for a private one",
		zookeeperServers, errors.Join(errs...))
}

// java prefers what was chosen on purpose, and Homebrew's over the stub that macOS has in PATH.
func (l *Lab) java() string {
	if home := os.Getenv("JAVA_HOME"); home != "" && exists(filepath.Join(home, "bin", "java")) {
		return filepath.Join(home, "bin", "java")
	}
	if path := l.findBelow("opt/openjdk/bin/java"); path != "" {
		return path
	}
	return l.find("java")
}

func (l *Lab) privateZooKeeper(ctx context.Context, java, jars string) (*Server, error) {
	dir, err := l.privateDir(ZooKeeper)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "zoo.cfg")
	// Homebrew keeps ZooKeeper's jars alone in a folder. Debian keeps all jars of the machine in one; ZooKeeper's
	// own names those it needs, except one that prints the log.
	classes := filepath.Join(jars, "*")
	if exists(filepath.Join(jars, "zookeeper.jar")) {
		classes = filepath.Join(jars, "zookeeper.jar") + ":" + filepath.Join(jars, "slf4j-simple.jar")
	}
	version := ""
	process, port, err := l.launchOnFreePort(ctx, func(port int) (Command, error) {
		lines := []string{
			"clientPort=" + strconv.Itoa(port),
			"clientPortAddress=127.0.0.1",
			"dataDir=" + dir,
			// A session lasts at least two ticks. Tests want short ones.
			"tickTime=500",
			"maxSessionTimeout=60000",
			// All clients have one address here, so a bound for each address would be one for all.
			"maxClientCnxns=0",
			"admin.enableServer=false",
			"4lw.commands.whitelist=ruok,srvr,mntr,cons,conf",
		}
		return Command{
			Name: ZooKeeper, Path: java, Env: serverEnv(dir),
			Args: []string{
				// A small server that starts quickly, and leaves nothing in the machine's temporary folder.
				"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
				"-Djava.io.tmpdir=" + dir, "-Dzookeeper.preAllocSize=1024",
				"-cp", classes, "org.apache.zookeeper.server.ZooKeeperServerMain", config,
			},
			Ready: func(ctx context.Context) error {
				answer, err := fourLetters(ctx, loopback(port), "srvr")
				if err != nil {
					return err
				}
				if !strings.Contains(answer, "Mode: ") {
					return errors.New(strings.TrimSpace(answer))
				}
				version = zookeeperVersion(answer)
				answer, err = fourLetters(ctx, loopback(port), "conf")
				if err == nil && !strings.Contains(answer, "dataDir="+dir) {
					err = fmt.Errorf("another ZooKeeper has taken port %d", port)
				}
				return err
			},
		}, l.writeConfig(config, lines)
	})
	if err != nil {
		return nil, err
	}
	return &Server{
		Name: ZooKeeper, Version: version, Address: loopback(port), Source: "private",
		Detail: jars, Process: process,
		env: []string{zookeeperServers + "=" + loopback(port)},
	}, nil
}

// fourLetters sends one of ZooKeeper's four-letter commands.
func fourLetters(ctx context.Context, address, command string) (string, error) {
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && len(answer) == 0 {
		err = fmt.Errorf("%s closed the connection without an answer", address)
	}
	return string(answer), err
}

// zookeeperVersion finds the number in "Zookeeper version: 3.8.0-…, built on …".
func zookeeperVersion(answer string) string {
	_, rest, _ := strings.Cut(answer, "Zookeeper version: ")
	version, _, _ := strings.Cut(rest, "-")
	return version
}
