// SPDX-License-Identifier: Apache-2.0

package qemu_test

import (
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest"
	"github.com/vmcred/vmcred/hypervisor/qemu"
	"github.com/vmcred/vmcred/hypervisor/vhostvsock"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// needVsock skips where QEMU has nobody for its vsock device.
func needVsock(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		return
	}
	if _, err := exec.LookPath(vhostvsock.Executable); err != nil {
		t.Skipf("SKIPPED: needs /dev/vhost-vsock (modprobe vhost_vsock), or %s on PATH (%s)", vhostvsock.Executable, vhostvsock.Install)
	}
}

// TestSuite is the suite that every driver passes, with real QEMUs. As root,
// they run as a user without a name.
func TestSuite(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED: needs qemu-system-x86_64 (apt install qemu-system-x86)")
	}
	f := hypervisortest.Factory{
		Driver: func(t *testing.T) hypervisor.Driver { return qemu.New(qemu.Options{CacheDir: t.TempDir()}) },
		Spec: func(s *vm.Spec) {
			s.Hypervisor = "qemu"
			s.QEMU = vm.QEMU{Machine: "q35", Accel: "tcg"}
		},
		WithoutValues: func(argv []string) []string {
			var out []string
			for len(argv) > 0 {
				if slices.Contains([]string{"-smbios", "-fw_cfg", "-global"}, argv[0]) {
					argv = argv[2:]
					continue
				}
				out, argv = append(out, argv[0]), argv[1:]
			}
			return out
		},
	}
	f.Vsock = needVsock
	if os.Geteuid() == 0 {
		f.Identity = &launch.Identity{UID: 65531, GID: 65531}
	}
	hypervisortest.Run(t, f)
}
