package servers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// entry is what the operating system knows about one process.
type entry struct {
	parent, group int
	// started tells two processes apart that had the same number one after the other.
	started string
	// zombie: it has ended, and only its exit status is left.
	zombie bool
}

// processTable lists every process of the machine: from /proc where there is one, else from ps, because a slim
// container has no ps and macOS has no /proc.
func processTable() (map[int]entry, error) {
	if !exists("/proc/self/stat") {
		return tableFromPS()
	}
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	table := make(map[int]entry, len(folders))
	for _, folder := range folders {
		pid, err := strconv.Atoi(folder.Name())
		if err != nil {
			continue // not a process
		}
		data, err := os.ReadFile(filepath.Join("/proc", folder.Name(), "stat"))
		if err != nil {
			continue // it ended while we were reading
		}
		// The second field is the command's name in brackets, and may itself hold blanks and brackets.
		end := bytes.LastIndexByte(data, ')')
		fields := strings.Fields(string(data[end+1:]))
		if len(fields) < 20 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		group, _ := strconv.Atoi(fields[2])
		table[pid] = entry{parent: parent, group: group, started: fields[19], zombie: fields[0] == "Z"}
	}
	return table, nil
}

func tableFromPS() (map[int]entry, error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	table := make(map[int]entry)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		pid, _ := strconv.Atoi(fields[0])
		parent, _ := strconv.Atoi(fields[1])
		group, _ := strconv.Atoi(fields[2])
		table[pid] = entry{
			parent: parent, group: group,
			started: strings.Join(fields[4:], " "),
			zombie:  strings.HasPrefix(fields[3], "Z"),
		}
	}
	return table, nil
}

// tree lists the living processes that belong to the leader: its process group, and everything that those started
// (PostgreSQL's backends leave their parent's group).
func tree(table map[int]entry, leader int) []int {
	children := make(map[int][]int)
	var found []int
	for pid, e := range table {
		children[e.parent] = append(children[e.parent], pid)
		if e.group == leader || pid == leader {
			found = append(found, pid)
		}
	}
	for i := 0; i < len(found); i++ {
		for _, child := range children[found[i]] {
			if !slices.Contains(found, child) {
				found = append(found, child)
			}
		}
	}
	return slices.DeleteFunc(found, func(pid int) bool { return table[pid].zombie })
}
