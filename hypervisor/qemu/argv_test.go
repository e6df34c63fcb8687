// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

var update = flag.Bool("update", false, "write the golden files anew")

// full is a VM with one of everything, names as bad as they get.
func full() *vm.Spec {
	s := spec("/images/a, b=c é/vmlinuz")
	s.Boot.Initrd = "/images/a, b=c é/initrd"
	s.Boot.Cmdline = "console=ttyS0 x=a,b"
	s.CPUs, s.Memory = 4, 3<<30
	s.Disks = []vm.Disk{
		{Path: "/images/a,b.img", Format: "raw", ReadOnly: true, Serial: "a,b"},
		{Path: "/images/data.qcow2", Format: "qcow2"},
	}
	s.Interfaces = []vm.Interface{{Type: "tap", ID: "vm-test", MAC: "02:00:00:01:01:01"}, {Type: "tap", ID: "a,b"}}
	s.Shares = []vm.Share{{Tag: "ro-store", Source: "/nix/store", ReadOnly: true}, {Tag: "b", Source: "/srv/a,b"}}
	return s
}

func plan(t *testing.T, d *Driver, s *vm.Spec, secrets map[string]string) delivery.Plan {
	t.Helper()
	p, refusals := delivery.Make(d.Offers(s, hypervisor.Info{}), delivery.Guest{Systemd: 252}, values(t, secrets).Metas())
	if len(refusals) > 0 {
		t.Fatal(refusals)
	}
	return p
}

func golden(t *testing.T, name string, argv []string) {
	t.Helper()
	var b strings.Builder
	for _, a := range argv {
		if strings.HasPrefix(a, "-") && b.Len() > 0 {
			b.WriteString("\n")
		} else if b.Len() > 0 {
			b.WriteString(" ")
		}
		b.WriteString(a)
	}
	b.WriteString("\n")
	path := filepath.Join("testdata", name+".argv")
	if *update {
		write(t, path, []byte(b.String()), 0o644)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s (run with -update if it is meant so):\n%s", path, diff)
	}
}

func TestArgv(t *testing.T) {
	d := New(Options{})
	info := hypervisor.Info{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22", Accel: "tcg"}
	secrets := map[string]string{"A": "a", "B,=": "b", "C": strings.Repeat("c", 5000), "D": strings.Repeat("d", 80000)}
	with := d.Command(full(), info, plan(t, d, full(), secrets))
	without := d.Command(full(), info, plan(t, d, full(), nil))
	golden(t, "with", with)
	golden(t, "without", without)
	if got := withoutValues(with); !slices.Equal(got, without) {
		t.Errorf("a VM without credentials has another argv:\n%s", cmp.Diff(got, without))
	}

	info.Version, info.Accel = "10.0.2", "kvm"
	small := spec("/vmlinuz")
	small.QEMU.Accel = "auto"
	small.Boot = vm.Boot{Firmware: "/images/a,b/OVMF_CODE.fd"}
	small.Disks = []vm.Disk{{Path: "/images/a.qcow2", Format: "qcow2"}, {Path: "/images/seed.img", ReadOnly: true, Serial: "seed"}}
	small.Watchdog = true
	small.QEMU.Extra = []string{"-device", "virtio-balloon-pci,id=a"}
	golden(t, "firmware", d.Command(small, info, delivery.Plan{}))
	small.Boot.Firmware = vm.FirmwareBIOS
	golden(t, "bios", d.Command(small, info, delivery.Plan{}))
	small = spec("/vmlinuz")
	small.QEMU.Accel = "auto"
	for _, mode := range []vm.ConsoleMode{vm.ConsoleOff, vm.ConsoleSocket, vm.ConsoleFile} {
		small.Console.Mode = mode
		golden(t, "console-"+string(mode), d.Command(small, info, delivery.Plan{}))
	}
}

// withoutValues drops the options that carry credentials or make room for them.
func withoutValues(argv []string) []string {
	var out []string
	for i := 0; i < len(argv); i++ {
		switch {
		case argv[i] == "-smbios", argv[i] == "-fw_cfg",
			argv[i] == "-global" && strings.HasPrefix(argv[i+1], "fw_cfg_io.x-file-slots="):
			i++
		default:
			out = append(out, argv[i])
		}
	}
	return out
}

// No room is not 0, which would be no limit.
func TestRoom(t *testing.T) {
	for gib, want := range map[int64]int{1: 64424, 16: 64424, 17: 64370, 64: 64262, 1024: 61022, 1 << 20: 1} {
		if got := smbiosRoom(gib << 30); got != want {
			t.Errorf("%d GiB of memory leave %d bytes, want %d", gib, got, want)
		}
	}
}
