// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

// sandbox is QEMU's own seccomp filter with all that it can deny: it starts no
// process, changes no user, sets no priority.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// A reset would give the guest the credentials of this start again, so it ends
// QEMU: a reboot is a new start. A panic ends it too.
const action = "reboot=shutdown,panic=shutdown"

// descriptors are the inherited ones, each as its number in the child.
type descriptors struct {
	qmp     string
	console string   // a socket's or a file's, empty without one
	shares  []string // a connection to each one's daemon
	vsock   string   // the kernel's device or a connection to its daemon
	way     vsockWay // which of the two
	smbios  []string // one structure each
	fwCfg   []item
}

// item is one fw_cfg file: its key and its descriptor.
type item struct{ key, fd string }

// Command returns the argument vector Start uses, QEMU's path first, with
// "<fd>" for each inherited descriptor.
func (d *Driver) Command(spec *vm.Spec, info hypervisor.Info, plan delivery.Plan) []string {
	const fd = "<fd>"
	ds := descriptors{qmp: fd, console: fd, vsock: fd, way: d.vsockWay(spec)}
	for range spec.Shares {
		ds.shares = append(ds.shares, fd)
	}
	for range plan.Structs {
		ds.smbios = append(ds.smbios, fd)
	}
	for _, e := range plan.Entries {
		if e.Channel != delivery.FwCfg {
			continue
		}
		key, err := credential.FwCfgName(e.Guest)
		if err != nil {
			key = "<" + err.Error() + ">" // no plan of ours has such an entry
		}
		ds.fwCfg = append(ds.fwCfg, item{key, fd})
	}
	return append([]string{info.Path}, arguments(spec, info, ds)...)
}

// arguments is argv without the program. Without credentials it is the same but
// for -smbios, -fw_cfg and the option that makes room for these.
func arguments(spec *vm.Spec, info hypervisor.Info, ds descriptors) []string {
	var a args
	accel := accelOf(spec, info)
	a.add("-name", "guest="+spec.Name)
	a.add("-nodefaults")
	a.add("-no-user-config")
	a.add("-display", "none")
	a.add("-sandbox", sandbox)
	a.machine(machineType(info, accel), spec.Memory, len(spec.Shares) > 0 || ds.way == byDaemon)
	a.add("-cpu", cpuModel(accel))
	a.add("-smp", fmt.Sprintf("%d,sockets=1", spec.CPUs))
	a.add("-m", fmt.Sprintf("%dM", spec.Memory>>20))
	a.boot(spec.Boot)
	a.add("-object", "rng-builtin,id=rng0")
	a.add("-device", "virtio-rng-pci,rng=rng0")
	a.add("-device", "pvpanic-pci")
	a.disks(spec.Disks, spec.Boot.Firmware != "")
	a.watchdog(spec.Watchdog)
	a.interfaces(spec.Interfaces)
	a.shares(spec.Shares, ds.shares)
	a.vsock(spec.Vsock, ds.vsock, ds.way)
	a.console(spec.Console.Mode, ds.console)
	a.add("-chardev", "socket,id=qmp,fd="+ds.qmp)
	a.add("-mon", "chardev=qmp,mode=control")
	a.add("-action", action)
	a.add("-S")
	a.values(ds)
	a.add(spec.QEMU.Extra...)
	return a
}

// machineType leaves the guest's memory out of dumps and out of page merging,
// whose timing tells another VM what is in a page. The device for VMware's
// tools and the system management mode of a firmware we do not use are off.
func machineType(info hypervisor.Info, accel string) string {
	m := "q35,accel=" + accel + ",dump-guest-core=off,mem-merge=off,vmport=off,smm=off"
	// Before 8.1 nothing else is the default; later QEMU would pick the 64-bit
	// entry point for a large table, and SeaBIOS cut it.
	if !parseInfo(info).Less(version{8, 1, 0}) {
		m += ",smbios-entry-point-type=32"
	}
	return m
}

// cpuModel: all that the host has under KVM, all that QEMU can emulate without.
// Five-level paging costs an emulated guest a level in every walk and gives it
// nothing below 64 TiB.
func cpuModel(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return "max,la57=off"
}

// accelOf resolves "auto".
func accelOf(spec *vm.Spec, info hypervisor.Info) string {
	switch spec.QEMU.Accel {
	case "", "auto":
		return info.Accel
	default:
		return spec.QEMU.Accel
	}
}

// args collects an argument vector.
type args []string

func (a *args) add(option ...string) { *a = append(*a, option...) }

// boot: the kernel's three options take their argument as it is, commas and all. A
// firmware is a flash that cannot be written: it forgets what it would keep there.
func (a *args) boot(b vm.Boot) {
	switch b.Firmware {
	case "":
		a.add("-kernel", b.Kernel)
	case vm.FirmwareBIOS: // is what QEMU takes if nothing is said
	default:
		a.add("-blockdev", "driver=raw,node-name=firmware,read-only=on,file.driver=file,file.filename="+escape(b.Firmware))
		a.add("-machine", "pflash0=firmware")
	}
	if b.Initrd != "" {
		a.add("-initrd", b.Initrd)
	}
	if b.Cmdline != "" {
		a.add("-append", b.Cmdline)
	}
}

// disks: a firmware tries them in their order, and nothing else.
func (a *args) disks(disks []vm.Disk, boot bool) {
	for i, d := range disks {
		n := strconv.Itoa(i)
		node := "driver=" + diskFormat(d) + ",node-name=disk" + n + ",read-only=" + onOff(d.ReadOnly) +
			",file.driver=" + fileDriver(d.Path) + ",file.filename=" + escape(d.Path)
		a.add("-blockdev", node)
		device := "virtio-blk-pci,drive=disk" + n
		if d.Serial != "" {
			device += ",serial=" + escape(d.Serial)
		}
		if boot {
			device += ",bootindex=" + n
		}
		a.add("-device", device)
	}
}

// watchdog: what it does when it bites, if nothing is said, is a reset, which ends
// QEMU as a guest's reboot does: a new start.
func (a *args) watchdog(on bool) {
	if on {
		a.add("-device", "i6300esb")
	}
}

func (a *args) interfaces(nics []vm.Interface) {
	for i, nic := range nics {
		n := strconv.Itoa(i)
		a.add("-netdev", "tap,id=net"+n+",ifname="+escape(nic.ID)+",script=no,downscript=no")
		device := "virtio-net-pci,netdev=net" + n
		if nic.MAC != "" {
			device += ",mac=" + nic.MAC
		}
		a.add("-device", device+",romfile=") // no network boot
	}
}

// machine: a share's daemon works in the guest's memory, so that is a memory file
// there, which QEMU hands to it.
func (a *args) machine(kind string, memory int64, shared bool) {
	if shared {
		a.add("-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", memory>>20))
		kind += ",memory-backend=ram"
	}
	a.add("-machine", kind)
}

func (a *args) shares(shares []vm.Share, fds []string) {
	for i, sh := range shares {
		n := strconv.Itoa(i)
		a.add("-chardev", "socket,id=fs"+n+",fd="+fds[i])
		a.add("-device", "vhost-user-fs-pci,chardev=fs"+n+",tag="+escape(sh.Tag))
	}
}

// console: "off" is no serial port at all.
func (a *args) console(mode vm.ConsoleMode, fd string) {
	switch mode {
	case vm.ConsoleOff:
		a.add("-serial", "none")
		return
	case vm.ConsoleFile:
		a.add("-add-fd", "set=1,fd="+fd)
		a.add("-chardev", "file,id=console,path=/dev/fdset/1,append=on")
	case vm.ConsoleSocket:
		a.add("-chardev", "socket,id=console,server=on,wait=off,fd="+fd)
	default:
		a.add("-chardev", "socket,id=console,fd="+fd)
	}
	a.add("-serial", "chardev:console")
}

// values: raw structures and items out of memory files. A raw structure
// excludes -smbios type=11, so the other strings are in the same structures.
func (a *args) values(ds descriptors) {
	for _, fd := range ds.smbios {
		a.add("-smbios", "file="+fdPath(fd))
	}
	if len(ds.fwCfg) == 0 {
		return
	}
	a.add("-global", fmt.Sprintf("fw_cfg_io.x-file-slots=%d", fwCfgOwn+len(ds.fwCfg)))
	for _, it := range ds.fwCfg {
		a.add("-fw_cfg", "name="+escape(it.key)+",file="+fdPath(it.fd))
	}
}

func fdPath(fd string) string { return "/dev/fd/" + fd }

// escape doubles the comma, which separates what QEMU parses as a list of
// key=value. Nothing else is special there.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func diskFormat(d vm.Disk) string {
	if d.Format == "" {
		return "raw"
	}
	return d.Format
}

// fileDriver: QEMU wants to be told a block device from a regular file.
func fileDriver(path string) string {
	if st, err := os.Stat(path); err == nil && st.Mode().Type() == os.ModeDevice {
		return "host_device"
	}
	return "file"
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
