// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// until closes seen once the text was written.
type until struct {
	text string
	all  bytes.Buffer
	seen chan struct{}
}

func (u *until) Write(p []byte) (int, error) {
	before := strings.Contains(u.all.String(), u.text)
	n, err := u.all.Write(p)
	if !before && strings.Contains(u.all.String(), u.text) {
		close(u.seen)
	}
	return n, err
}

// tunAsUdevHasIt opens the device to everyone for the time of a test, where no
// udev runs.
func tunAsUdevHasIt(t *testing.T) {
	t.Helper()
	st, err := os.Stat(hostcheck.Tun)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() == 0o666 {
		return
	}
	if err := os.Chmod(hostcheck.Tun, 0o666); err != nil {
		t.Skipf("SKIPPED: %s cannot be opened to other users: %v", hostcheck.Tun, err)
	}
	t.Cleanup(func() { _ = os.Chmod(hostcheck.Tun, st.Mode().Perm()) })
}

// TestDevices: a QEMU of another user has its tap and its disks, through the
// confinement it is started in.
func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 || !hostcheck.Exists(hostcheck.Tun) {
		t.Skip("SKIPPED: making a tap for another user needs root and " + hostcheck.Tun)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI=true, and there is no ip (apt install iproute2)")
		}
		t.Skip("SKIPPED: needs ip (apt install iproute2)")
	}
	d, info, sp := installed(t)
	const tap = "vmcred-dev0"
	if out, err := exec.Command("ip", "tuntap", "add", "dev", tap, "mode", "tap", "user", "65531").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: cannot make a tap: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", tap).Run() })
	tunAsUdevHasIt(t)
	dir, err := os.MkdirTemp("", "vmcred-devices-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	kernel, err := os.ReadFile(sp.Boot.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	sp.Boot = vm.Boot{Kernel: filepath.Join(dir, "kernel"), Cmdline: probe.WordWait}
	write(t, sp.Boot.Kernel, kernel, 0o644)
	data, seed := filepath.Join(dir, "data, with a comma.img"), filepath.Join(dir, "seed.img")
	write(t, data, make([]byte, 1<<20), 0o600)
	write(t, seed, make([]byte, 1<<20), 0o444)
	if err := os.Chown(data, 65531, 65531); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sp.Disks = []vm.Disk{{Path: data, Format: "raw", Serial: "data"}, {Path: seed, Format: "raw", ReadOnly: true}}
	sp.Interfaces = []vm.Interface{{Type: "tap", ID: tap, MAC: "02:00:00:01:01:01"}}
	l, out := launchOf(t, d, info, sp, values(t, map[string]string{"A": "alpha"}))
	l.Identity = &launch.Identity{UID: 65531, GID: 65531}
	ready := &until{text: probe.Last, seen: make(chan struct{})}
	l.Console = ready
	m := begin(t, d, l)
	select {
	case <-ready.seen:
	case <-m.(*machine).Over():
		t.Fatalf("the VM ended: %s", out.log.String())
	}

	up := func(step string) {
		if o, err := exec.Command("ip", "link", "set", tap, step).CombinedOutput(); err != nil {
			t.Fatalf("ip link set %s: %s", step, o)
		}
	}
	up("up")
	// A tap has a carrier while somebody is attached to it.
	if b, err := os.ReadFile("/sys/class/net/" + tap + "/carrier"); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("carrier of %s: %q, %v", tap, b, err)
	}
	open := map[string]bool{}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		to, _ := os.Readlink(link)
		open[to] = true
	}
	for _, want := range []string{data, seed, hostcheck.Tun} {
		if !open[want] {
			t.Errorf("QEMU has not opened %s", want)
		}
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, _ := end(t, m); !exit.Clean {
		t.Errorf("exit %+v, log %s", exit, out.log.String())
	}
}
