// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hostcheck"
)

// TestMadeTap: each hypervisor, started by root, has the taps that are made for it, as
// the VM's own user, and they are gone after it.
func TestMadeTap(t *testing.T) {
	if os.Geteuid() != 0 || !hostcheck.Exists(hostcheck.Tun) {
		t.Skip("SKIPPED: making a tap needs root and " + hostcheck.Tun)
	}
	needCommands(t, "ip", "unshare", "nsenter")
	if out, err := exec.Command("unshare", "--net", "--mount", "mount", "-t", "sysfs", "sysfs", "/sys").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: a network of its own cannot be made here: %v %s", err, out)
	}
	onEach(t, func(t *testing.T, k kind) {
		h := newHostOf(t, k, 0, k.few())
		h.more = "interfaces:\n  - {type: tap, id: vm-bridged, bridge: br0, isolated: true}\n  - {type: tap, id: vm-alone, isolated: true}\n"
		makeUser(t, h.name)
		args, env := h.bySource(t, "--credentials", "wait")
		path, err := program()
		if err != nil {
			t.Fatal(err)
		}
		r := start(t, h.as(exec.Command("unshare", append([]string{
			"--net", "--mount", "sh", "-ec",
			`mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200; ip link add br0 type bridge; ip link set br0 up; exec "$@"`, "sh", path, "run", h.file(),
		}, args...)...), env...))
		t.Cleanup(func() { h.clean(t) })
		t.Cleanup(func() { r.stop(t) })
		r.awaitGuest(t)
		ns, err := os.Open(proc(r.Process.Pid, "ns/net")) // it stays when the process has ended
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		links := linksOf(t, ns)
		for want, n := range map[string]int{
			"vm-bridged: ": 1, "vm-alone: ": 1, "alias vmcred " + h.name + ": bridge br0 isolated": 1, "user vmcred-" + h.name: 2,
		} {
			if strings.Count(links, want) != n {
				t.Errorf("%q is not in %s", want, links)
			}
		}
		r.stop(t)
		if left := linksOf(t, ns); strings.Contains(left, "vm-") {
			t.Errorf("left behind: %s", left)
		}
	})
}

// linksOf lists the interfaces of a network.
func linksOf(t *testing.T, ns *os.File) string {
	t.Helper()
	c := exec.Command("nsenter", slices.Concat([]string{"--net=/proc/self/fd/3"}, strings.Fields("ip -oneline -details link show"))...)
	c.ExtraFiles = []*os.File{ns}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
