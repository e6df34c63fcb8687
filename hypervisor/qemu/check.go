// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/qemu/option"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// maxCPUs: q35 without an interrupt-remapping IOMMU has 8-bit APIC ids.
const maxCPUs = 255

// kvmDevice is what QEMU opens for acceleration.
const kvmDevice = "/dev/kvm"

// Check lists what this driver cannot do, and what of the specification is not
// on this host. It reads no file, and asks a share's daemon its version; who may open what is CheckAccess.
func (d *Driver) Check(spec *vm.Spec, info hypervisor.Info) []vm.Problem {
	c := hostcheck.New(spec)
	checkMachine(c, spec, info)
	d.checkVsock(c, spec)
	checkExtra(c, spec.QEMU.Extra)
	c.Memory()
	c.Boot()
	c.Disks()
	c.Interfaces("qemu")
	c.Shares()
	c.ConsoleFile()
	return append(c.Problems(), virtiofs.Check(spec, virtiofs.Options{CacheDir: d.o.CacheDir})...)
}

// CheckAccess implements [hypervisor.AccessChecker]. Start does it again, before
// it asks for values.
func (d *Driver) CheckAccess(spec *vm.Spec, info hypervisor.Info, id *launch.Identity) []vm.Problem {
	return hostcheck.Access(spec, d.devices(spec, info), id)
}

// devices are those of this host that QEMU opens for that VM, or is given.
func (d *Driver) devices(spec *vm.Spec, info hypervisor.Info) []hostcheck.Device {
	var list []hostcheck.Device
	if len(spec.Interfaces) > 0 {
		list = append(list, hostcheck.Device{Field: "interfaces", Path: hostcheck.Tun, Hint: "chmod 0666 " + hostcheck.Tun + ", as udev has it"})
	}
	if accelOf(spec, info) == "kvm" {
		list = append(list, hostcheck.Device{Field: "qemu.accel", Path: kvmDevice, Hint: `add the user to the group kvm, or use "tcg"`})
	}
	if d.vsockWay(spec) == byKernel {
		list = append(list, hostcheck.Device{Field: "vsock", Path: d.vsockDevice, Hint: vsockCure})
	}
	return list
}

func checkMachine(c *hostcheck.Checker, spec *vm.Spec, info hypervisor.Info) {
	if m := spec.QEMU.Machine; m != "" && m != "q35" {
		c.Fault("qemu.machine", strconv.Quote(m)+" is not supported yet", `use "q35"`)
	}
	switch spec.QEMU.Accel {
	case "", "auto", "tcg":
	case "kvm":
		if info.Accel != "kvm" {
			c.Fault("qemu.accel", "KVM cannot be used on this host: "+strings.TrimPrefix(info.Why, emulated),
				`use "auto", which falls back to software emulation`)
		}
	default:
		c.Fault("qemu.accel", strconv.Quote(spec.QEMU.Accel)+" is no accelerator of QEMU's that is supported", `use "auto", "kvm" or "tcg"`)
	}
	if spec.CPUs < 1 || spec.CPUs > maxCPUs {
		c.Fault("cpus", fmt.Sprintf("q35 has 1 to %d CPUs, not %d", maxCPUs, spec.CPUs), "")
	}
	if spec.Memory < 1<<20 || spec.Memory%(1<<20) != 0 {
		c.Fault("memory", fmt.Sprintf("%d bytes is no whole number of MiB", spec.Memory), "")
	}
	if v := parseInfo(info); v.Less(tested) {
		c.Warn("hypervisor", fmt.Sprintf("QEMU %s is older than %s, the oldest that is tested", v, tested), "")
	}
}

// checkExtra never shows an argument: it could be a secret.
func checkExtra(c *hostcheck.Checker, extra []string) {
	for _, r := range option.Refuse(extra) {
		what := "this"
		if r.Option != "" {
			what = hostcheck.QuotePath("-" + r.Option)
		}
		c.Fault(fmt.Sprintf("qemu.extra[%d]", r.Index), what+" is refused: "+r.Reason, "")
	}
}
