// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/vm"
)

// maxCPUs: q35 without an interrupt-remapping IOMMU has 8-bit APIC ids.
const maxCPUs = 255

// Check lists what this driver cannot do, and what of the specification is not
// on this host. It reads no file; who may open what is CheckAccess.
func (d *Driver) Check(spec *vm.Spec, info hypervisor.Info) []vm.Problem {
	c := &checker{file: spec.File}
	c.machine(spec, info)
	c.notYet(spec)
	c.regular("boot.kernel", spec.Boot.Kernel, "")
	if spec.Boot.Initrd != "" {
		c.regular("boot.initrd", spec.Boot.Initrd, "")
	}
	for i, disk := range spec.Disks {
		c.disk(fmt.Sprintf("disks[%d]", i), disk)
	}
	for i, nic := range spec.Interfaces {
		c.nic(fmt.Sprintf("interfaces[%d]", i), nic)
	}
	if spec.Console.Mode == vm.ConsoleFile {
		c.consoleFile(spec.Console.Path)
	}
	return c.problems
}

type checker struct {
	file     string
	problems []vm.Problem
}

func (c *checker) fault(field, message, hint string) {
	c.problems = append(c.problems, vm.Problem{
		Pos: vm.Pos{File: c.file}, Field: field, Message: message, Hint: hint,
	})
}

func (c *checker) machine(spec *vm.Spec, info hypervisor.Info) {
	if m := spec.QEMU.Machine; m != "" && m != "q35" {
		c.fault("qemu.machine", strconv.Quote(m)+" is not supported yet", `use "q35"`)
	}
	switch spec.QEMU.Accel {
	case "", "auto", "tcg":
	case "kvm":
		if info.Accel != "kvm" {
			c.fault("qemu.accel", "KVM cannot be used on this host: "+strings.TrimPrefix(info.Why, emulated),
				`use "auto", which falls back to software emulation`)
		}
	default:
		c.fault("qemu.accel", strconv.Quote(spec.QEMU.Accel)+" is no accelerator of QEMU's that is supported", `use "auto", "kvm" or "tcg"`)
	}
	if spec.CPUs < 1 || spec.CPUs > maxCPUs {
		c.fault("cpus", fmt.Sprintf("q35 has 1 to %d CPUs, not %d", maxCPUs, spec.CPUs), "")
	}
	if spec.Memory < 1<<20 || spec.Memory%(1<<20) != 0 {
		c.fault("memory", fmt.Sprintf("%d bytes is no whole number of MiB", spec.Memory), "")
	}
	if v := parseInfo(info); v.less(tested) {
		c.problems = append(c.problems, vm.Problem{
			Severity: vm.Warning, Pos: vm.Pos{File: c.file}, Field: "hypervisor",
			Message: fmt.Sprintf("QEMU %s is older than %s, the oldest that is tested", v, tested),
		})
	}
}

// notYet refuses by name what the file may say and this driver cannot do.
func (c *checker) notYet(spec *vm.Spec) {
	if len(spec.Shares) > 0 {
		c.fault("shares", "shared directories are not supported with qemu yet", "use a disk")
	}
	if spec.Vsock != nil {
		c.fault("vsock", "vsock is not supported with qemu yet", "")
	}
	if spec.Notify == vm.NotifyGuest {
		c.fault("notify", "waiting for the guest's READY=1 is not supported with qemu yet", `use "boot"`)
	}
}

// stat reports a path that is not absolute or not there, and returns nil then.
func (c *checker) stat(field, path, hint string) fs.FileInfo {
	if !filepath.IsAbs(path) {
		c.fault(field, fmt.Sprintf("%q is no absolute path", path), "")
		return nil
	}
	st, err := os.Stat(path)
	if err != nil {
		c.fault(field, reason(path, err), hint)
		return nil
	}
	return st
}

// reason is "/path: no such file or directory", the path quoted if it must be.
func reason(path string, err error) string {
	return console.QuotePath(path) + ": " + cause(err).Error()
}

func (c *checker) regular(field, path, hint string) {
	if st := c.stat(field, path, hint); st != nil && !st.Mode().IsRegular() {
		c.fault(field, console.QuotePath(path)+" is "+console.KindOf(st.Mode())+", not a regular file", "")
	}
}

func (c *checker) disk(field string, d vm.Disk) {
	if f := diskFormat(d); f != "raw" && f != "qcow2" {
		c.fault(field+".format", strconv.Quote(f)+" is not supported", `use "raw" or "qcow2"`)
	}
	if len(d.Serial) > 20 {
		c.fault(field+".serial", fmt.Sprintf("has %d characters, and virtio-blk cuts it at 20", len(d.Serial)), "")
	}
	st := c.stat(field+".path", d.Path, "")
	if st == nil {
		return
	}
	if m := st.Mode(); !m.IsRegular() && m.Type() != fs.ModeDevice {
		c.fault(field+".path", console.QuotePath(d.Path)+" is "+console.KindOf(m)+", not a regular file or a block device", "")
	}
}

func (c *checker) consoleFile(path string) {
	if !filepath.IsAbs(path) {
		c.fault("console", fmt.Sprintf("%q is no absolute path", path), "")
		return
	}
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		c.fault("console", console.QuotePath(path)+" is "+console.KindOf(st.Mode())+", not a regular file", "")
	}
	if dir := filepath.Dir(path); !exists(dir) {
		c.fault("console", console.QuotePath(dir)+": no such directory", "mkdir it first")
	}
}
