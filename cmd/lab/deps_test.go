package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDepsSaysNothingWhenNothingIsMissing(t *testing.T) {
	out, err := exec.Command("sh", "deps.sh", "test").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Empty(t, string(out))
}

func TestDepsRefusesAnOldGo(t *testing.T) {
	for version, fine := range map[string]bool{
		"go1.25.3": false, "go1.9": false, "go1.26": true, "go1.26.0": true, "go1.27rc1": true, "go2.0": true,
	} {
		folder := t.TempDir()
		script := "#!/bin/sh\necho " + version + "\n"
		require.NoError(t, os.WriteFile(filepath.Join(folder, "go"), []byte(script), 0o755))
		cmd := exec.Command("sh", "deps.sh", "test")
		cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if fine {
			require.NoError(t, err, version)
			continue
		}
		require.Error(t, err, version)
		require.Contains(t, string(out), "this is "+version+", and Fencepost needs Go 1.26 or newer")
	}
}

func TestDepsNamesWhatIsMissing(t *testing.T) {
	shell, err := exec.LookPath("sh")
	require.NoError(t, err)
	folder := t.TempDir()
	for name, script := range map[string]string{"go": "echo go1.26.0", "uname": "echo Plan9", "id": "echo 1000"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("#!"+shell+"\n"+script+"\n"), 0o755))
	}
	for _, purpose := range []string{"demo", "test"} {
		cmd := exec.Command(shell, "deps.sh", purpose)
		cmd.Env = []string{"PATH=" + folder}
		output, err := cmd.CombinedOutput()
		require.Error(t, err)
		out := string(output)
		require.Contains(t, out, "deps: redis-server is missing: the locks of the strategies redis and redlock\n")
		require.Contains(t, out, "install your system's packages for")
		for _, line := range []string{
			"deps: gcc libc6-dev is missing: the race detector needs cgo\n", "deps: chromium-headless-shell is missing: the tests of the page drive it\n",
		} {
			require.Equal(t, purpose == "test", strings.Contains(out, line), line)
		}
	}
}
