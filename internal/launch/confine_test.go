// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	firstUID  = 65531
	secondUID = 65532
)

// refused has the VMM try everything on a process, each a test case.
func refused(t *testing.T, c *cast, pid int, but ...string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(attempts())) {
		if slices.Contains(but, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			answer := c.try(t, name, pid)
			if !strings.HasPrefix(answer, "refused: ") {
				t.Errorf("%s of process %d: %s", name, pid, answer)
			}
		})
	}
}

// ordinary is a user who is not root: ourselves, or one for root to become.
func ordinary() int {
	if uid := os.Geteuid(); uid != 0 {
		return uid
	}
	return firstUID
}

// butOfOneUser is what Landlock leaves open: without scopes a signal between processes of one user gets through.
func (c *cast) butOfOneUser() []string {
	but := []string{prlimit}
	if !strings.Contains(c.Confinement, "landlock with scopes") {
		but = append(but, "kill", "tgkill", "pidfd signal", "kill threads", "tgkill threads")
	}
	return but
}

func needLandlock(t *testing.T, c *cast) {
	t.Helper()
	if !strings.Contains(c.Confinement, ", landlock with") {
		t.Skipf("SKIPPED: needs a kernel with Landlock: %s", c.Confinement)
	}
}

func TestVMMOfAnotherUserCannotReachTheRunner(t *testing.T) {
	needRoot(t)
	c := startRunner(t, -1, strconv.Itoa(firstUID))
	refused(t, c, c.Runner)
}

// As in a unit, or when an ordinary user runs a VM: both are the same user.
func TestVMMOfTheSameUserCannotReachTheRunner(t *testing.T) {
	c := startRunner(t, ordinary())
	needLandlock(t, c)
	refused(t, c, c.Runner, c.butOfOneUser()...)
}

func TestVMMCannotReachAnotherVM(t *testing.T) {
	needRoot(t)
	first := startRunner(t, -1, strconv.Itoa(firstUID))
	second := startRunner(t, -1, strconv.Itoa(secondUID))
	t.Run("its runner", func(t *testing.T) { refused(t, second, first.Runner) })
	t.Run("its VMM", func(t *testing.T) { refused(t, second, first.VMM) })
}

func TestVMMCannotReachAnotherVMOfTheSameUser(t *testing.T) {
	first := startRunner(t, ordinary())
	second := startRunner(t, ordinary())
	needLandlock(t, second)
	t.Run("its runner", func(t *testing.T) { refused(t, second, first.Runner, second.butOfOneUser()...) })
	// A VMM is not undumpable, so its own user may count its descriptors, but
	// not follow one ("fd 0").
	but := append(second.butOfOneUser(), "fd", "fd of threads")
	t.Run("its VMM", func(t *testing.T) { refused(t, second, first.VMM, but...) })
}

// The control: a process of the same user outside any domain gets through, so
// it is the domain that refuses. Undumpable alone stops some, not all.
func TestWithoutADomainItGetsThrough(t *testing.T) {
	c := startRunner(t, ordinary())
	free := startFree(t, ordinary())
	for _, name := range []string{"environ", "kill", "ptrace", "fd", "root", "pidfd getfd", "mem"} {
		if answer := free.try(t, name, c.VMM); answer != "done" {
			t.Errorf("%s of the VMM, from outside: %s", name, answer)
		}
	}
	for _, name := range []string{"kill", "pidfd signal"} {
		if answer := free.try(t, name, c.Runner); answer != "done" {
			t.Errorf("%s of the runner, from outside: %s", name, answer)
		}
	}
}

// Only the child enters the domain: no thread of the runner does.
func TestTheRunnerStaysUnconfined(t *testing.T) {
	c := startRunner(t, ordinary(), "look")
	if !strings.Contains(c.Looked, "done") || strings.Contains(c.Looked, "refused") {
		t.Errorf("from the runner's threads: %s", c.Looked)
	}
}

// Where the limit on core dumps cannot be set, a VMM's core holds no memory.
func TestNoMemoryInTheVMMsCore(t *testing.T) {
	c := startRunner(t, ordinary())
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.VMM) + "/coredump_filter")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(b)); strings.Trim(got, "0") != "" {
		t.Errorf("coredump_filter of the VMM is %s", got)
	}
}
