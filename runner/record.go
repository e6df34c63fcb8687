// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"cmp"
	"os"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// record writes down what runs, for those who ask later. A VM that cannot be
// written down runs all the same.
func (r *run) record(p *Prepared, m hypervisor.Machine) {
	r.now = state.Record{
		VM: r.Spec.Name, File: r.Spec.File, VMM: state.Describe(m.PID()), VMMUser: os.Geteuid(),
		Hypervisor: r.Spec.Hypervisor, HVVersion: p.Info.Version, Accel: p.Info.Accel, Read: p.Read, Started: time.Now(),
	}
	if r.Identity != nil {
		r.now.VMMUser = int(r.Identity.UID)
	}
	if r.Spec.Hypervisor == "qemu" && r.Spec.QEMU.Accel != "auto" {
		r.now.Accel = cmp.Or(r.Spec.QEMU.Accel, p.Info.Accel)
	}
	if r.Spec.Console.Mode == vm.ConsoleSocket {
		places := hypervisor.ConsoleSockets(r.dir)
		r.now.Console = places[0]
		for _, path := range places {
			if _, err := os.Lstat(path); err == nil {
				r.now.Console = path
			}
		}
	}
	for _, e := range p.Plan.Entries {
		if e.Kind != credential.OEMString {
			r.now.Delivered = append(r.now.Delivered, state.Delivered{
				Host: e.Host, Guest: e.Guest, Bytes: e.Len, Channel: string(e.Channel), Version: p.Versions[e.Host], Proven: state.Unknown,
			})
		}
	}
	r.write()
}

// recordReady writes down that the VM is ready, and by whose word: vm.NotifyBoot
// or vm.NotifyGuest.
func (r *run) recordReady(by vm.Notify) {
	r.now.Ready = &state.Ready{At: time.Now(), By: string(by)}
	r.write()
}

func (r *run) write() {
	if err := r.claim.Write(r.now); err != nil {
		r.Log.Warn("status cannot show this VM: its record was not written", "error", err)
	}
}
