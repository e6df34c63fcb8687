// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/vm"
)

// What a file that does not say gets.
const (
	DefaultCPUs         = 1
	DefaultMemory       = 512 << 20
	DefaultSystemd      = 252 // the oldest that reads credentials from SMBIOS
	DefaultStartTimeout = 3 * time.Minute
	DefaultStopTimeout  = 15 * time.Second
	DefaultMachine      = "q35"
	DefaultAccel        = "auto"
)

// DefaultUnit is the unit that runs a VM and gets its secrets.
func DefaultUnit(name string) string { return "vmcred@" + name + ".service" }

// defaults fills in what the file leaves open and puts lists that have no
// order of their own into one.
func (d *decoder) defaults(name string) {
	s := d.spec
	s.Name = name
	fill(d, "cpus", &s.CPUs, DefaultCPUs)
	fill(d, "memory", &s.Memory, DefaultMemory)
	fill(d, "console", &s.Console.Mode, vm.ConsoleStdout)
	fill(d, "guest.systemd", &s.Guest.Systemd, DefaultSystemd)
	fill(d, "notify", &s.Notify, defaultNotify(s))
	fill(d, "unit", &s.Unit, DefaultUnit(name))
	fill(d, "start-timeout", &s.StartTimeout, DefaultStartTimeout)
	fill(d, "stop-timeout", &s.StopTimeout, DefaultStopTimeout)
	fill(d, "qemu.machine", &s.QEMU.Machine, DefaultMachine)
	fill(d, "qemu.accel", &s.QEMU.Accel, DefaultAccel)
	for i := range s.Disks {
		format := "raw"
		if strings.HasSuffix(s.Disks[i].Path, ".qcow2") {
			format = "qcow2"
		}
		fill(d, fmt.Sprintf("disks[%d].format", i), &s.Disks[i].Format, format)
	}
	for i := range s.Interfaces {
		fill(d, fmt.Sprintf("interfaces[%d].type", i), &s.Interfaces[i].Type, "tap")
	}
	for i := range s.Shares {
		fill(d, fmt.Sprintf("shares[%d].proto", i), &s.Shares[i].Proto, "virtiofs")
		fill(d, fmt.Sprintf("shares[%d].readonly", i), &s.Shares[i].ReadOnly, true)
	}
	for i := range s.Credentials {
		c := &s.Credentials[i]
		fill(d, join(join("credentials", c.Host), "as"), &c.Guest, credential.GuestName(c.Host))
	}
	slices.SortStableFunc(s.Credentials, func(a, b vm.Credential) int { return cmp.Compare(a.Host, b.Host) })
	slices.SortStableFunc(s.Static, func(a, b vm.Static) int { return cmp.Compare(a.Name, b.Name) })
}

// defaultNotify waits for the guest's own word where it can say it.
func defaultNotify(s *vm.Spec) vm.Notify {
	if s.Guest.Systemd >= notifySystemd && s.Vsock != nil {
		return vm.NotifyGuest
	}
	return vm.NotifyBoot
}

// fill sets a field the file does not have.
func fill[T any](d *decoder, path string, to *T, v T) {
	if !d.has(path) {
		*to = v
	}
}
