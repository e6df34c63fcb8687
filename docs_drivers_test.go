// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor"
	"github.com/vmcred/vmcred/hypervisor/qemu"
	"github.com/vmcred/vmcred/vm"
)

// driver is one column of docs/hypervisors.md.
type driver struct {
	name string
	hypervisor.Driver
	info hypervisor.Info
}

func drivers() []driver {
	return []driver{
		{"QEMU 7.2", qemu.New(qemu.Options{}), hypervisor.Info{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22", Accel: "tcg"}},
		{"cloud-hypervisor 53", cloudhypervisor.New(cloudhypervisor.Options{}), hypervisor.Info{Path: "/usr/bin/cloud-hypervisor", Version: "53.0.0", Accel: "kvm"}},
	}
}

// can is one row: what of a VM's file a driver takes.
type can struct {
	what  string
	field string // where the driver's refusal would be
	ask   func(spec *vm.Spec, dir string)
}

func cans() []can {
	text := func(s *vm.Spec) { s.Boot = vm.Boot{} }
	return []can{
		{"`boot.kernel`, `boot.initrd`", "boot", func(s *vm.Spec, dir string) { s.Boot.Initrd = dir + "/initrd" }},
		{"`boot.firmware: bios`", "boot", func(s *vm.Spec, _ string) { text(s); s.Boot.Firmware = vm.FirmwareBIOS }},
		{"`boot.firmware`, a file", "boot", func(s *vm.Spec, dir string) { text(s); s.Boot.Firmware = dir + "/firmware" }},
		{"`disks`, raw and qcow2", "disks", func(s *vm.Spec, dir string) {
			s.Disks = []vm.Disk{{Path: dir + "/disk", Format: "raw", Serial: "a"}, {Path: dir + "/disk.qcow2", Format: "qcow2", ReadOnly: true}}
		}},
		{"`shares`", "shares", func(s *vm.Spec, dir string) {
			s.Shares = []vm.Share{{Tag: "a", Source: dir, Proto: "virtiofs", ReadOnly: true, User: "nobody"}}
			if os.Geteuid() != 0 {
				s.Shares[0].User = ""
			}
		}},
		{"`vsock`", "vsock", func(s *vm.Spec, _ string) { s.Vsock = &vm.Vsock{CID: 3} }},
		{"`notify: guest`", "notify", func(s *vm.Spec, _ string) {
			s.Vsock, s.Guest.Systemd, s.Notify = &vm.Vsock{CID: 3}, 257, vm.NotifyGuest
		}},
		{"`watchdog`", "watchdog", func(s *vm.Spec, _ string) { s.Watchdog = true }},
		{"`console: stdout`, `off`, a file", "console", func(s *vm.Spec, dir string) { s.Console = vm.Console{Mode: vm.ConsoleFile, Path: dir + "/console"} }},
		{"`console: socket`", "console", func(s *vm.Spec, _ string) { s.Console.Mode = vm.ConsoleSocket }},
	}
}

// hostOf is a directory with the files of a VM, and a PATH with the daemons that
// drivers look for.
func hostOf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-docs-") // another user runs the daemons
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"kernel", "initrd", "firmware", "disk", "disk.qcow2"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644))
	}
	bin := filepath.Join(dir, "bin")
	err = errors.Join(err, os.Mkdir(bin, 0o755), os.Chmod(dir, 0o755))
	for name, says := range map[string]string{"virtiofsd": "virtiofsd 1.14.0", "vhost-device-vsock": "vhost-device-vsock 0.3.0"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho "+says+"\n"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	return dir
}

// answer is what a driver says of one row.
func (d driver) answer(c can, dir string) string {
	spec := &vm.Spec{
		Name: "a", CPUs: 1, Memory: 512 << 20, Boot: vm.Boot{Kernel: dir + "/kernel"}, Guest: vm.Guest{Systemd: 252},
		Notify: vm.NotifyBoot, Console: vm.Console{Mode: vm.ConsoleStdout}, QEMU: vm.QEMU{Machine: "q35", Accel: "auto"},
	}
	c.ask(spec, dir)
	refused := slices.ContainsFunc(vm.Problems(d.Check(spec, d.info)).Fatal(), func(p vm.Problem) bool { return strings.HasPrefix(p.Field, c.field) })
	return map[bool]string{true: "no", false: "yes"}[refused]
}

// carries is what a driver offers to a guest: a line for each channel.
func (d driver) carries(dir string) string {
	spec := &vm.Spec{CPUs: 1, Memory: 512 << 20, Boot: vm.Boot{Kernel: dir + "/kernel"}, QEMU: vm.QEMU{Machine: "q35", Accel: "auto"}}
	var out []string
	for _, o := range d.Offers(spec, d.info) {
		words := []string{"`" + string(o.Channel) + "`"}
		add := func(n int, form string) {
			if n > 0 {
				words = append(words, fmt.Sprintf(form, n))
			}
		}
		add(o.Items, "%d items")
		add(o.Structs, "structures: %d")
		add(o.TotalMax>>10, "%d KiB in all")
		add(o.ItemMax>>10, "%d KiB each")
		add(o.NameMax, "names of %d")
		out = append(out, strings.Join(words, ", "))
	}
	return strings.Join(out, "; ")
}

func driverTable(t *testing.T) string {
	t.Helper()
	dir := hostOf(t)
	all := drivers()
	row := func(first string, cell func(driver) string) string {
		cells := []string{first}
		for _, d := range all {
			cells = append(cells, cell(d))
		}
		return "| " + strings.Join(cells, " | ") + " |\n"
	}
	table := row("", func(d driver) string { return d.name }) + "|---" + strings.Repeat("|---", len(all)) + "|\n"
	table += row("credentials by", func(d driver) string { return d.carries(dir) })
	for _, c := range cans() {
		table += row(c.what, func(d driver) string { return d.answer(c, dir) })
	}
	return table
}

// What docs/hypervisors.md says of the drivers is what they say themselves.
func TestDriverTable(t *testing.T) {
	const begin = "<!-- as the drivers answer -->\n"
	page, err := os.ReadFile("docs/hypervisors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), begin)
	got, _, _ := strings.Cut(rest, "\n\n")
	if want := driverTable(t); got+"\n" != want {
		t.Errorf("docs/hypervisors.md, after %q, should have:\n%s", begin, want)
	}
}
