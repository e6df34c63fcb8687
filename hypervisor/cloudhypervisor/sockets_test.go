// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bufio"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/vm"
)

// onBoth runs a test on the stand-in, and on the real program where it works.
func onBoth(t *testing.T, f func(t *testing.T, path string)) {
	t.Run("stand-in", func(t *testing.T) {
		kvmAsUdevHasIt(t)
		f(t, vmm(t))
	})
	t.Run("real", func(t *testing.T) {
		needReal(t)
		f(t, "")
	})
}

// The console's socket is where it is looked for, although the VMM, whose user
// cannot enter that directory, made it; and it is gone afterwards.
func TestConsoleSocket(t *testing.T) {
	onBoth(t, func(t *testing.T, path string) {
		spec := withDevices(t)
		spec.Console = vm.Console{Mode: vm.ConsoleSocket}
		d := New(Options{Path: path})
		l := launchOf(t, d, spec)
		m := startOf(t, d, l)
		socket := hypervisor.ConsoleSockets(l.RunDir)[1]
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		in := bufio.NewScanner(c)
		for in.Scan() && !strings.Contains(in.Text(), probe.Last) {
		}
		if err := in.Err(); err != nil {
			t.Fatal(err)
		}
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the end: %v", err)
		}
		left, _ := os.ReadDir(l.RunDir)
		if len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// needVirtiofsd skips where there is none that a share of nobody's works with.
func needVirtiofsd(t *testing.T) {
	t.Helper()
	d, err := virtiofs.Probe(t.Context(), virtiofs.Options{})
	if err != nil || d.Legacy {
		t.Skipf("SKIPPED: needs a virtiofsd in Rust on PATH: %v %v", d, err)
	}
}

func withShare(t *testing.T) *vm.Spec {
	t.Helper()
	spec := withDevices(t)
	spec.Shares = []vm.Share{{Tag: "ro-store", Source: place(t), Proto: "virtiofs", ReadOnly: true}}
	if os.Geteuid() == 0 {
		spec.Shares[0].User = "nobody"
	}
	return spec
}

// A share's daemon runs as long as the VM, and as another user. If it ends before,
// that is told.
func TestShare(t *testing.T) {
	needVirtiofsd(t)
	needReal(t)
	d := New(Options{})
	spec := withShare(t)
	m, _ := run(t, d, spec)
	daemons := virtiofsds(t, spec.Shares[0].Source)
	if len(daemons) == 0 {
		t.Fatal("no virtiofsd runs")
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if left := virtiofsds(t, spec.Shares[0].Source); len(left) > 0 {
		t.Errorf("left behind: processes %v", left)
	}
	m, _ = run(t, d, spec)
	for _, pid := range virtiofsds(t, spec.Shares[0].Source) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	lost := ""
	for e := range m.Events() { // it is ended by whoever hears that
		if e.Kind == hypervisor.EventShareLost {
			lost = e.Detail
			_ = m.Kill()
		}
	}
	if !strings.Contains(lost, "share ro-store ended") {
		t.Errorf("without its daemon: %q", lost)
	}
}

// virtiofsds are the processes that share this directory.
func virtiofsds(t *testing.T, source string) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, name := range all {
		argv, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(argv), source) || !strings.Contains(string(argv), "virtiofsd") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
