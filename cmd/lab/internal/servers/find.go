package servers

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// mend is the command that installs a missing server.
const mend = "run `make deps`"

// defaultPrefixes: Debian's, Homebrew's on Apple silicon, Homebrew's on Intel.
var defaultPrefixes = []string{"/usr", "/opt/homebrew", "/usr/local"}

// find returns the first file that exists: in PATH, or below a prefix by one of the patterns, the newest version
// first. It returns "" when there is none.
func (l *Lab) find(program string, patterns ...string) string {
	if path, err := exec.LookPath(program); err == nil {
		if path, err = filepath.Abs(path); err == nil {
			return path
		}
	}
	return l.findBelow(patterns...)
}

func (l *Lab) findBelow(patterns ...string) string {
	prefixes := l.options.Prefixes
	if prefixes == nil {
		prefixes = defaultPrefixes
	}
	for _, prefix := range prefixes {
		for _, pattern := range patterns {
			paths, _ := filepath.Glob(filepath.Join(prefix, pattern))
			slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
			if len(paths) > 0 {
				return paths[0]
			}
		}
	}
	return ""
}

var versionFolder = regexp.MustCompile(`postgresql[@/](\d+)`)

// version is the number in postgresql/15 or postgresql@15, so that 15 is newer than 9.
func version(path string) int {
	match := versionFolder.FindStringSubmatch(path)
	if match == nil {
		return 0
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
