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
	programs, ok := l.findZooKeeper()
	if !ok {
		return []*Server{{Name: ZooKeeper, Source: "unavailable", Detail: mend}}, nil
	}
	server, err := l.launchZooKeeper(ctx, programs, ZooKeeper, nil)
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

// programs are what it takes to run ZooKeeper: a Java, and the folder with the jars.
type programs struct{ java, jars string }

func (l *Lab) findZooKeeper() (programs, bool) {
	jars := l.findBelow("share/java/zookeeper.jar", "opt/zookeeper/libexec/lib/zookeeper-[0-9]*.jar")
	p := programs{java: l.java(), jars: filepath.Dir(jars)}
	return p, p.java != "" && jars != ""
}

// classes is Java's class path. Homebrew keeps ZooKeeper's jars alone in a folder. Debian keeps all jars of the machine in
// one; ZooKeeper's own names those it needs, except one that prints the log.
func (p programs) classes() string {
	if exists(filepath.Join(p.jars, "zookeeper.jar")) {
		return filepath.Join(p.jars, "zookeeper.jar") + ":" + filepath.Join(p.jars, "slf4j-simple.jar")
	}
	return filepath.Join(p.jars, "*")
}

// launchZooKeeper starts one ZooKeeper. ensemble is what its configuration says about the others; with nil it has none.
func (l *Lab) launchZooKeeper(ctx context.Context, p programs, name string, ensemble []string) (*Server, error) {
	dir, err := l.privateDir(name)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "zoo.cfg")
	main := "org.apache.zookeeper.server.ZooKeeperServerMain"
	if ensemble != nil {
		main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
		id := filepath.Join(dir, "myid")
		if err := l.writeConfig(id, []string{strings.TrimPrefix(name, ZooKeeper+"-")}); err != nil {
			return nil, err
		}
	}
	version := ""
	process, port, err := l.launchOnFreePort(ctx, func(port int) (Command, error) {
		lines := append([]string{
			"clientPort=" + strconv.Itoa(port),
			"clientPortAddress=127.0.0.1",
			"dataDir=" + dir,
			// A session lasts at least two ticks. Tests want short ones.
			"tickTime=500",
			"maxSessionTimeout=60000",
			// All clients have one address here, so a bound for each address would be one for all.
			"maxClientCnxns=0",
			"admin.enableServer=false",
			"4lw.commands.whitelist=srvr,conf",
		}, ensemble...)
		return Command{
			Name: name, Path: p.java, Env: serverEnv(dir),
			Args: []string{
				// A small server that starts quickly, and leaves nothing in the machine's temporary folder.
				"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
				"-Djava.io.tmpdir=" + dir, "-Dzookeeper.preAllocSize=1024",
				"-cp", p.classes(), main, config,
			},
			Ready: func(ctx context.Context) error {
				answer, err := fourLetters(ctx, loopback(port), "srvr")
				if err != nil {
					return err
				}
				if mode(answer) == "" { // it has not found the others yet
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
		Name: name, Version: version, Address: loopback(port), Source: "private",
		Detail: p.jars, Process: process,
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

// mode is what the answer to srvr says that a server is: standalone, leader or follower; empty while it is none of them.
func mode(answer string) string {
	_, rest, _ := strings.Cut(answer, "\nMode: ")
	mode, _, _ := strings.Cut(rest, "\n")
	return mode
}

// Packets is how many messages a ZooKeeper has received from its clients so far, and sent to them.
func Packets(ctx context.Context, address string) (received, sent int64, err error) {
	answer, err := fourLetters(ctx, address, "srvr")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(answer) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "Received":
			received, err = strconv.ParseInt(value, 10, 64)
		case "Sent":
			sent, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%s says %q: %w", address, line, err)
		}
	}
	return received, sent, nil
}
