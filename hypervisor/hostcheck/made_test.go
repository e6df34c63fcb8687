// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: ip %v: %s", args, out)
	}
}

// TestMade: taps that are made for a VM, as they are found.
func TestMade(t *testing.T) {
	if os.Geteuid() != 0 || !Exists(Tun) {
		t.Skip("SKIPPED: making a tap needs root and " + Tun)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI=true, and there is no ip (apt install iproute2)")
		}
		t.Skip("SKIPPED: needs ip (apt install iproute2)")
	}
	for _, name := range []string{"vmcred-m1", "vmcred-m2", "vmcred-m3"} {
		ip(t, "tuntap", "add", "dev", name, "mode", "tap", "user", "65531")
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	}
	ip(t, "link", "add", "vmcred-mb", "type", "bridge")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "vmcred-mb").Run() })
	ip(t, "link", "set", "vmcred-m1", "alias", "vmcred test-vm: bridge vmcred-mb")
	ip(t, "link", "set", "vmcred-m2", "alias", "vmcred test-vm-2: bridge vmcred-mb")
	made := func(id string, root bool, bridge string, isolated bool) string {
		c := New(&vm.Spec{Name: "test-vm"})
		c.made("interfaces[0]", vm.Interface{Type: "tap", ID: id, Bridge: bridge, Isolated: isolated}, root)
		return faults(c.Problems())
	}
	const foreign = "which was not made for this VM"
	for _, tc := range []struct {
		id       string
		bridge   string
		isolated bool
		root     string // what is said to root, who makes it anew
		other    string
	}{
		{id: "vmcred-m1", bridge: "vmcred-mb"},
		{id: "vmcred-m1", bridge: "vmcred-mb", isolated: true, other: "was made as the VM's file was before [with the VM stopped: systemctl restart vmcred-net@test-vm.service"},
		{id: "vmcred-m1", isolated: true, other: "was made as the VM's file was before"},
		{id: "vmcred-m2", bridge: "vmcred-mb", root: foreign, other: foreign},
		{id: "vmcred-m3", isolated: true, root: foreign, other: foreign},
		{id: "vmcred-m4", isolated: true, other: "is not there, and only root can make it [run the VM as root or by its unit, or as root: vmcred net up test-vm;"},
		{id: "vmcred-m4", bridge: "vmcred-mb", other: "is not there, and only root can make it"},
		{id: "vmcred-m1", bridge: "vmcred-no", root: "there is no bridge vmcred-no on this host [ip link add vmcred-no type bridge", other: "there is no bridge"},
		{id: "vmcred-m1", bridge: "vmcred-m3", root: "vmcred-m3 is an interface, but no bridge", other: "no bridge"},
	} {
		for root, want := range map[bool]string{true: tc.root, false: tc.other} {
			got := made(tc.id, root, tc.bridge, tc.isolated)
			if !strings.Contains(got, want) || (want == "") != (got == "") {
				t.Errorf("%+v, root %v: %q, want %q", tc, root, got, want)
			}
		}
	}
	testMadeFits(t)
}

// testMadeFits: one that is as it should be, and another user's.
func testMadeFits(t *testing.T) {
	t.Helper()
	s := spec(kernelFile(t, t.TempDir()))
	s.Interfaces = []vm.Interface{{Type: "tap", ID: "vmcred-m1", Bridge: "vmcred-mb"}}
	if got := faults(all(s)); got != "" {
		t.Error(got)
	}
	c := New(s)
	c.taps(&launch.Identity{User: "vmcred-test-vm", UID: 65530, GID: 65530})
	if got := faults(c.Problems()); !strings.Contains(got, "belongs to another user than vmcred-test-vm [with the VM stopped: systemctl restart vmcred-net@") {
		t.Error(got)
	}
}
