// SPDX-License-Identifier: Apache-2.0

// Package qemu starts VMs with qemu-system-x86_64: machine q35, direct kernel
// boot, credentials as SMBIOS structures and fw_cfg items out of locked memory
// files, control over an inherited socket pair that nobody else can open.
package qemu

import (
	"time"

	"github.com/vmcred/vmcred/hypervisor"
)

// executable is what Probe looks for on PATH.
const executable = "qemu-system-x86_64"

// startTimeout is how long Start waits for QEMU to take its options and answer,
// if neither the context nor Options say less. It reads the kernel and the
// initrd in that time, and a host may be slow.
const startTimeout = 60 * time.Second

// Options is what a driver is told once.
type Options struct {
	Path         string        // the executable; empty: qemu-system-x86_64 on PATH
	CacheDir     string        // where facts are remembered until the next boot, mode 0700; empty: nowhere
	StartTimeout time.Duration // for QEMU to answer; 0: one minute
}

// Driver starts VMs with QEMU. It is safe for concurrent use.
type Driver struct {
	o           Options
	vsockDevice string
}

var (
	_ hypervisor.Driver        = (*Driver)(nil)
	_ hypervisor.AccessChecker = (*Driver)(nil)
)

// New returns a driver. It looks at nothing yet.
func New(o Options) *Driver {
	if o.StartTimeout <= 0 {
		o.StartTimeout = startTimeout
	}
	return &Driver{o: o, vsockDevice: vsockDevice}
}

// Error is a fault of this host or of QEMU, in words for people.
type Error = hypervisor.Error
