// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

// golden is the recorded command line of a VM of microvm.nix, by its case's name.
func golden(t testing.TB, name string) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var g struct{ Argv []string }
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g.Argv
}

// seed is the VM of most of them.
func seed() *vm.Spec {
	const store = "/nix/store/00000000000000000000000000000000-"
	return &vm.Spec{
		Hypervisor: "cloud-hypervisor", CPUs: 2, Memory: 1 << 30, Watchdog: true, Notify: vm.NotifyBoot,
		Boot: vm.Boot{
			Kernel: store + "linux-6.12-dev/vmlinux", Initrd: store + "initrd/initrd",
			Cmdline: "earlyprintk=ttyS0 console=ttyS0 reboot=t panic=-1 8250.nr_uarts=1 init=" + store + "nixos-system-test-vm/init regInfo=" + store + "closure-info/registration",
		},
		Console:         vm.Console{Mode: vm.ConsoleStdout},
		Disks:           []vm.Disk{{Path: "/w/data.img", Format: "raw", Queues: 2}},
		Interfaces:      []vm.Interface{{Type: "tap", ID: "vm-test", MAC: "02:00:00:01:01:01", Pairs: 2}},
		Shares:          []vm.Share{{Tag: "ro-store", Proto: "virtiofs", Socket: "/w/test-vm-virtiofs-ro-store.sock"}},
		Vsock:           &vm.Vsock{CID: 3, Socket: "/w/notify.vsock"},
		Static:          []vm.Static{{Name: "CLUSTER", Value: "example-host"}, {Name: "ENVIRONMENT", Value: "test"}, {Name: "vmm.notify_socket", Value: "vsock-stream:2:8888"}},
		CloudHypervisor: vm.CloudHypervisor{Extra: []byte(`{"console":{"mode":"Null"},"platform":{}}`)},
	}
}

// TestGoldens: what microvm.nix's command lines mean.
func TestGoldens(t *testing.T) {
	for name, change := range map[string]func(*vm.Spec){
		"seed":      func(*vm.Spec) {},
		"no-socket": func(*vm.Spec) {},
		"ch35-repeated-flags": func(s *vm.Spec) {
			s.Disks = append([]vm.Disk{{Path: "/w/b.img", Format: "raw", Queues: 2}}, s.Disks...)
		},
		"disks": func(s *vm.Spec) {
			s.Disks = append([]vm.Disk{
				{Path: "/w/b.img", Format: "qcow2", Queues: 2, ReadOnly: true, Direct: true, Serial: "abc"},
				{Path: "/w/c.img", Format: "vhd", Queues: 2},
			}, s.Disks...)
		},
		"extraargs": func(s *vm.Spec) {
			s.MaxCPUs, s.Vsock.Socket = 8, "/w/v.sock"
			s.Boot.Cmdline = strings.TrimPrefix(s.Boot.Cmdline, "earlyprintk=ttyS0 console=ttyS0")
			s.Console = vm.Console{Mode: vm.ConsoleFile, Path: "/srv/x"}
			s.CloudHypervisor.Extra = []byte(`{"console":{"mode":"Null"},"platform":{"system_uuid":"123e4567-e89b-12d3-a456-426614174000"},"rng":{"src":"/dev/random"}}`)
		},
		"hotplug-balloon-huge": func(s *vm.Spec) {
			s.Memory, s.Shares = 2<<30, nil
			s.Disks = append([]vm.Disk{{Path: "/nix/store/00000000000000000000000000000000-microvm-store-disk.erofs", ReadOnly: true, Queues: 2}}, s.Disks...)
			s.CloudHypervisor.Extra = []byte(`{"balloon":{"deflate_on_oom":true,"free_page_reporting":true,"size":134217728},"console":{"mode":"Null"},` +
				`"memory":{"hotplug_method":"VirtioMem","hotplug_size":2147483648,"hotplugged_size":536870912,"hugepages":true,"mergeable":true},"platform":{}}`)
		},
		"macvtap-multiqueue-pci": func(s *vm.Spec) {
			s.Interfaces = []vm.Interface{
				{Type: "tap", ID: "t0", MAC: "02:00:00:00:00:08", Pairs: 2},
				{Type: "tap", MAC: "02:00:00:00:00:09", Pairs: 2, FDs: []int{3, 4}},
			}
			s.Devices = []string{"/sys/bus/pci/devices/0000:01:00.0", "/sys/bus/pci/devices/0000:01:00.1"}
		},
		"no-vsock-no-oem": func(s *vm.Spec) { s.Vsock, s.Static = nil, nil },
	} {
		want := seed()
		change(want)
		c, problems := Parse(golden(t, name), "/w")
		if c == nil {
			t.Errorf("%s: %v", name, problems)
			continue
		}
		if !reflect.DeepEqual(c.Spec, want) {
			t.Errorf("%s:\n%+v\nextra %s\nwant\n%+v", name, *c.Spec, c.Spec.CloudHypervisor.Extra, *want)
		}
		socket := "/w/test-vm.sock"
		if name == "no-socket" {
			socket = ""
		}
		if c.APISocket != socket || c.OwnReady() != (len(want.Static) > 0) || c.Program != golden(t, name)[0] {
			t.Errorf("%s: socket %q, ready %t, program %q", name, c.APISocket, c.OwnReady(), c.Program)
		}
	}
}

// TestPatchedProgram: a flag that only a patched program has is refused by its name.
func TestPatchedProgram(t *testing.T) {
	c, problems := Parse(golden(t, "graphics"), "/w")
	if c != nil || len(problems) != 1 || problems[0].Field != "argument 22 (--gpu)" || !strings.Contains(problems[0].Message, "patched") {
		t.Errorf("%+v: %v", c, problems)
	}
}
