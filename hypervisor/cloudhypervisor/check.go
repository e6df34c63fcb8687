// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// maxCPUs is what cloud-hypervisor takes on x86-64 without an IOMMU for interrupts.
const maxCPUs = 254

const kvmDevice = "/dev/kvm"

// Check lists what this driver cannot do, and what of the specification is not
// on this host. It reads no file; who may open what is CheckAccess.
func (d *Driver) Check(spec *vm.Spec, info hypervisor.Info) []vm.Problem {
	c := hostcheck.New(spec)
	if runtime.GOARCH != "amd64" {
		c.Fault("hypervisor", "cloud-hypervisor has no SMBIOS strings on "+runtime.GOARCH, "use another hypervisor there")
	}
	if spec.CPUs < 1 || spec.CPUs > maxCPUs {
		c.Fault("cpus", fmt.Sprintf("cloud-hypervisor takes 1 to %d CPUs, not %d", maxCPUs, spec.CPUs), "")
	}
	if spec.Memory < 1<<20 || spec.Memory%(1<<20) != 0 {
		c.Fault("memory", fmt.Sprintf("%d bytes is no whole number of MiB", spec.Memory), "")
	}
	checkFirmware(c, spec)
	checkExtra(c, spec.CloudHypervisor.Extra)
	c.Memory()
	c.Boot()
	c.Disks("vhd", "vhdx")
	c.Interfaces("cloud-hypervisor")
	c.Shares()
	c.ConsoleFile()
	if v := parseInfo(info); v.Less(tested) {
		c.Warn("hypervisor", fmt.Sprintf("cloud-hypervisor %s is older than %s, the oldest that is tested", v, tested), "")
	}
	if strings.HasPrefix(info.Why, noKVM) {
		c.Warn("hypervisor", "KVM cannot boot an operating system here: "+strings.TrimPrefix(info.Why, noKVM), "use a host with KVM, or hypervisor: qemu, which has software emulation")
	}
	return append(c.Problems(), virtiofs.Check(spec, virtiofs.Options{CacheDir: d.o.CacheDir})...)
}

// checkFirmware: cloud-hypervisor brings none with it.
func checkFirmware(c *hostcheck.Checker, spec *vm.Spec) {
	if spec.Boot.Firmware == vm.FirmwareBIOS {
		c.Fault("boot.firmware", "cloud-hypervisor has no firmware of its own", "give the path of one made for it: CLOUDHV.fd, or hypervisor-fw")
	}
}

// CheckAccess implements [hypervisor.AccessChecker].
func (d *Driver) CheckAccess(spec *vm.Spec, _ hypervisor.Info, id *launch.Identity) []vm.Problem {
	devices := []hostcheck.Device{{Field: "hypervisor", Path: kvmDevice, Hint: "cloud-hypervisor needs KVM: add the user to the group kvm"}}
	return hostcheck.Access(spec, devices, id)
}
