// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const netUnit = "vmcred-net@test-vm.service"

// setUpNetwork boots a host with a network of its own, a bridge, and a VM whose guest
// does nothing.
func setUpNetwork(t *testing.T) *host {
	t.Helper()
	needs(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("SKIPPED, no tap was made by a unit: %v", err)
	}
	h := &host{page: readPage(t, "../../docs/systemd.md")}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	h.container = boot(t, dir, "--private-network", "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guestDirectory(t)+":/var/lib/vmcred/images/demo")
	h.do(t, "chmod 0666 /dev/net/tun; ip link add br0 type bridge; ip link set br0 up") // as udev has it
	h.write(t, vmFile, `version: 1
hypervisor: qemu
memory: 256MiB
stop-timeout: 0s
boot:
  kernel: /var/lib/vmcred/images/demo/vmlinuz
  initrd: /var/lib/vmcred/images/demo/initrd
  cmdline: console=ttyS0 quiet panic=-1 rdinit=/bin/sh -- -c "exec sleep 1000"
interfaces:
  - {type: tap, id: vm-test, bridge: br0, isolated: true}
  - {type: tap, id: vm-alone, isolated: true}
`)
	h.do(t, "systemctl daemon-reload")
	return h
}

// links are the interfaces there are, without what the kernel chooses.
func (h *host) links(t *testing.T) string {
	t.Helper()
	return strings.Join(strings.Fields(h.do(t, `for i in /sys/class/net/*; do echo "${i##*/}: $(cat $i/ifalias)"; done`)), " ")
}

const (
	bare  = "br0: lo:"
	taken = "br0: lo: vm-alone: vmcred test-vm: isolated vm-test: vmcred test-vm: bridge br0 isolated"
)

func (h *host) wantLinks(t *testing.T, when, want string) {
	t.Helper()
	if got := h.links(t); got != want {
		t.Errorf("%s: the interfaces are %s, want %s", when, got, want)
	}
}

// TestNetworkUnit: under a real systemd, taps are there for as long as the VM's unit
// is, whatever happens to it, and a VM that runs keeps them.
func TestNetworkUnit(t *testing.T) {
	h := setUpNetwork(t)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := h.try("journalctl --no-pager --boot --lines=80")
			t.Log(out)
		}
	})
	h.wantLinks(t, "before", bare)
	h.do(t, "systemctl start "+unitName)
	h.wantLinks(t, "running", taken)
	if got := h.do(t, "cat /sys/class/net/vm-test/owner /sys/class/net/vm-alone/owner /sys/class/net/vm-*/carrier; id -u "+vmUser+"; id -u "+vmUser); !ownsBoth(got) {
		t.Errorf("owners, carriers and the user: %q", got)
	}
	h.wantSaid(t, 78, "vmcred net down test-vm", "VM test-vm runs: its tap vm-", "vmcred stop test-vm")
	h.wantSaid(t, 78, "vmcred net up test-vm", "VM test-vm runs: its tap vm-")
	h.do(t, "systemctl stop "+unitName)
	h.do(t, "until test $(systemctl show --value --property=ActiveState "+netUnit+") = inactive; do :; done")
	h.wantLinks(t, "stopped", bare)

	// Killed, the VM is started again, with new taps: its file may say otherwise by then.
	h.do(t, "systemctl start "+unitName)
	index := h.do(t, "cat /sys/class/net/vm-*/ifindex")
	h.do(t, "pid=$(systemctl show --value --property=MainPID "+unitName+"); kill -KILL $pid; "+
		"until now=$(systemctl show --value --property=MainPID "+unitName+"); test $now != 0 && test $now != $pid && systemctl is-active --quiet "+unitName+"; do :; done")
	if now := h.do(t, "cat /sys/class/net/vm-*/ifindex"); now == index {
		t.Errorf("the taps are still %s", now)
	}
	h.wantLinks(t, "killed", taken)
	h.do(t, "systemctl stop "+unitName+" "+netUnit)
	h.wantLinks(t, "stopped again", bare)

	h.do(t, "ip link delete br0")
	if out, err := h.try("systemctl start " + unitName); err == nil {
		t.Errorf("it started without its bridge: %s", out)
	}
	h.wantSaid(t, 0, "journalctl --no-pager --boot --unit "+netUnit, "there is no bridge br0 on this host", "ip link add br0 type bridge")
	h.wantLinks(t, "refused", "lo:")
	h.wantSaid(t, 78, "vmcred check test-vm", "there is no bridge br0 on this host")
	h.do(t, "ip link add br0 type bridge; ip link set br0 up; systemctl reset-failed")

	testPlainNetwork(t, h)
}

// ownsBoth: both taps belong to the user and are in use.
func ownsBoth(out string) bool {
	f := strings.Fields(out)
	return len(f) == 6 && f[0] == f[4] && f[1] == f[5] && f[2] == "1" && f[3] == "1"
}

// testPlainNetwork: root's own run makes them, too, and its unit leaves them alone.
func testPlainNetwork(t *testing.T, h *host) {
	h.wantSaid(t, 0, "vmcred check test-vm")
	page := readPage(t, "../../docs/network.md")
	for _, said := range page.follow(t, h.container, "By hand") {
		if !strings.Contains(said, "alias vmcred test-vm: bridge br0 isolated") {
			t.Errorf("the page's commands say %s", said)
		}
	}
	h.wantLinks(t, "after the page", bare)
	h.do(t, "vmcred net up test-vm") // a leftover
	h.do(t, `exec 3< <(exec vmcred run test-vm 2>&1); grep -q -m1 "runs as process" <&3`)
	h.wantLinks(t, "a plain run", taken)
	if out, err := h.try("systemctl start " + unitName); err == nil {
		t.Errorf("the unit started beside the plain run: %s", out)
	}
	h.wantLinks(t, "a plain run, and a unit that may not", taken)
	// Killed, with a hypervisor that may not be gone yet.
	for range 3 {
		h.do(t, "runner=$(cat "+plainDir+"/lock); kill -KILL $runner; tail --pid=$runner -f /dev/null; "+
			`exec 3< <(exec vmcred run test-vm 2>&1); grep -q -m1 "runs as process" <&3`)
		h.wantLinks(t, "after a plain run was killed", taken)
	}
	h.wantSaid(t, 0, "vmcred stop --force test-vm", "test-vm has stopped")
	h.wantLinks(t, "after a plain run", bare)
	h.wantSaid(t, 78, "setpriv --reuid="+vmUser+" --clear-groups vmcred net up "+vmFile, "only root makes taps and takes them away", "as root: vmcred net up test-vm")
	h.wantSaid(t, 78, "setpriv --reuid="+vmUser+" --clear-groups env XDG_RUNTIME_DIR=/tmp vmcred check "+vmFile, "the tap vm-test is not there, and only root can make it")
}
