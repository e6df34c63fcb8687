// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

var emulation = hypervisor.Info{Version: "7.2.0", Accel: "tcg", Why: emulated + "SSE code does not run"}

// faults are all problems in one text, a line each, with their hints.
func faults(ps []vm.Problem) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%s: %s: %s [%s]\n", p.Severity, p.Field, p.Message, p.Hint)
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	kernel := touch(t, dir, "kernel")
	for name, tc := range map[string]struct {
		spoil func(*vm.Spec)
		want  string
	}{
		"nothing":     {func(*vm.Spec) {}, ""},
		"machine":     {func(s *vm.Spec) { s.QEMU.Machine = "microvm" }, `error: qemu.machine: "microvm" is not supported yet [use "q35"]`},
		"kvm":         {func(s *vm.Spec) { s.QEMU.Accel = "kvm" }, `error: qemu.accel: KVM cannot be used on this host: SSE code does not run [use "auto"`},
		"accel":       {func(s *vm.Spec) { s.QEMU.Accel = "hax" }, `error: qemu.accel: "hax"`},
		"shares":      {func(s *vm.Spec) { s.Shares = []vm.Share{{Tag: "x", Socket: kernel}} }, "error: shares[0]: "},
		"vsock path":  {func(s *vm.Spec) { s.Vsock = &vm.Vsock{CID: 3, Socket: "/run/s"} }, "error: vsock: a path for its socket is not supported"},
		"extra":       {func(s *vm.Spec) { s.QEMU.Extra = []string{"-device", "a", "-smbios", "type=11,value=hunter2"} }, "error: qemu.extra[2]: -smbios is refused: it would carry credentials past the plan"},
		"extra value": {func(s *vm.Spec) { s.QEMU.Extra = []string{"-object", "secret,id=a,data=hunter2"} }, "error: qemu.extra[1]: -object is refused: it is a secret on a command line"},
		"extra disk":  {func(s *vm.Spec) { s.QEMU.Extra = []string{"/dev/fd/9"} }, "error: qemu.extra[0]: this is refused: it reaches what QEMU inherits"},
		"firmware":    {func(s *vm.Spec) { s.Boot = vm.Boot{Firmware: dir + "/gone"} }, "error: boot.firmware: " + dir + "/gone: no such file"},
		"bios":        {func(s *vm.Spec) { s.Boot, s.Watchdog = vm.Boot{Firmware: vm.FirmwareBIOS}, true }, ""},
		"cpus":        {func(s *vm.Spec) { s.CPUs = 256 }, "error: cpus: q35 has 1 to 255 CPUs, not 256"},
		"memory":      {func(s *vm.Spec) { s.Memory++ }, "error: memory: 134217729 bytes is no whole number of MiB"},
		"no kernel":   {func(s *vm.Spec) { s.Boot.Kernel = dir + "/a b" }, `error: boot.kernel: "` + dir + `/a b": no such file or directory`},
		"disk":        {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: kernel}, {Path: dir + "/gone"}} }, "error: disks[1].path: " + dir + "/gone: no such file"},
		"bridge":      {func(s *vm.Spec) { s.Interfaces = []vm.Interface{{Type: "bridge", ID: "br0"}} }, `error: interfaces[0].type: "bridge" is not supported with qemu yet [use "tap"]`},
		"console dir": {func(s *vm.Spec) { s.Console = vm.Console{Mode: vm.ConsoleFile, Path: dir + "/gone/log"} }, "error: console: " + dir + "/gone: no such directory [mkdir it first]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(kernel)
			tc.spoil(s)
			got := faults(New(Options{}).Check(s, emulation))
			if !strings.Contains(got, tc.want) || strings.Count(got, "\n") != min(1, len(tc.want)) {
				t.Errorf("got %s, want one: %s", got, tc.want)
			}
		})
	}
	old := emulation
	old.Version = "6.2.0"
	if got := faults(New(Options{}).Check(spec(kernel), old)); !strings.HasPrefix(got, "warning: hypervisor: QEMU 6.2.0 is older than 7.2.0") {
		t.Error(got)
	}
}

// TestDeviceList: KVM and the taps' device, if the VM has them.
func TestDeviceList(t *testing.T) {
	s := spec("/kernel")
	d := New(Options{})
	if got := d.devices(s, emulation); len(got) > 0 {
		t.Errorf("asked for what the VM does not have: %+v", got)
	}
	s.QEMU.Accel = "auto"
	s.Interfaces = []vm.Interface{{Type: "tap", ID: "vm-a"}, {Type: "tap", ID: "vm-b"}}
	got := d.devices(s, hypervisor.Info{Accel: "kvm"})
	if len(got) != 2 || got[0].Path != "/dev/net/tun" || got[0].Field != "interfaces" || got[1].Path != "/dev/kvm" || got[1].Field != "qemu.accel" {
		t.Errorf("%+v", got)
	}
}
