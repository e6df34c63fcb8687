// SPDX-License-Identifier: Apache-2.0

// Package cloudhypervisor starts VMs with cloud-hypervisor: credentials as SMBIOS
// strings in the body of one API request, over a connection that nobody else can
// open, since its socket has no name any more when the VMM starts.
package cloudhypervisor

import (
	"time"

	"github.com/vmcred/vmcred/hypervisor"
)

// executable is what Probe looks for on PATH.
const executable = "cloud-hypervisor"

// startTimeout is how long Start waits for the VMM to boot the guest, if neither
// the context nor Options say less.
const startTimeout = 60 * time.Second

// Options is what a driver is told once.
type Options struct {
	Path         string        // the executable; empty: cloud-hypervisor on PATH
	CacheDir     string        // where facts are remembered until the next boot, mode 0700; empty: nowhere
	StartTimeout time.Duration // for the VMM to boot the guest; 0: one minute
}

// Driver starts VMs with cloud-hypervisor. It is safe for concurrent use.
type Driver struct{ o Options }

var (
	_ hypervisor.Driver        = (*Driver)(nil)
	_ hypervisor.AccessChecker = (*Driver)(nil)
)

// New returns a driver. It looks at nothing yet.
func New(o Options) *Driver {
	if o.StartTimeout <= 0 {
		o.StartTimeout = startTimeout
	}
	return &Driver{o: o}
}
