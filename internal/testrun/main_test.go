// SPDX-License-Identifier: Apache-2.0

// Package testrun holds tests of the program as a whole: against whoever looks
// for a secret or tries to read a VM's processes, against death at any moment,
// and on hosts that lack something.
package testrun

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/standin"
	"github.com/vmcred/vmcred/state"
)

// partEnv makes the test binary play another part than that of the tests.
const partEnv = "VMCRED_TEST_PART"

func TestMain(m *testing.M) {
	if standin.IsCall(os.Args) {
		if _, err := os.Stat(os.Args[0] + echoes); err == nil {
			os.Exit(playEcho())
		}
		os.Exit(standin.Main(os.Args[1:], standin.Options{}))
	}
	if part := os.Getenv(partEnv); part != "" {
		os.Exit(play(part))
	}
	_, err := os.Stat(state.SystemRoot)
	code := m.Run()
	if err != nil {
		forgetSystemRoot()
	}
	if dir, err := workDir(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func play(part string) int {
	switch part {
	case "attacker":
		return playAttacker()
	case "runner", "leaky runner":
		return playRunner(part == "leaky runner")
	case "without memfd_secret":
		return playWithoutMemfdSecret()
	}
	fmt.Fprintln(os.Stderr, "no such part:", part)
	return 2
}

// forgetSystemRoot removes what root's runs remember about this host, if these
// tests made it. A directory that someone else uses by now is not empty.
func forgetSystemRoot() {
	files, _ := filepath.Glob(state.SystemRoot + "/*.json")
	for _, f := range files {
		_ = os.Remove(f)
	}
	_ = os.Remove(state.SystemRoot + "/.run")
	_ = os.Remove(state.SystemRoot)
}

// workDir is one directory for all tests, which every user may enter.
var workDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vmcred-testrun-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
})

// program builds the static program that is tested.
var program = sync.OnceValues(func() (string, error) {
	dir, err := workDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "vmcred")
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../../cmd/vmcred")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// needRoot skips a test that only root can make, and says so.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, nothing was shown: needs root: " + why)
	}
}

// needCommands skips a test that needs programs this machine lacks. Where CI is
// true it fails: scripts/install-deps installs all of them.
func needCommands(t *testing.T, names ...string) {
	t.Helper()
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 && os.Getenv("CI") == "true" {
		t.Fatal("CI=true, and there is no " + strings.Join(missing, ", "))
	}
	if len(missing) > 0 {
		t.Skip("SKIPPED, nothing was shown: needs " + strings.Join(missing, ", "))
	}
}
