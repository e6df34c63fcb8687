// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vmcred/vmcred/internal/systemctl"
	"github.com/vmcred/vmcred/state"
)

// vmState is what a VM is found to be, in one word.
type vmState string

const (
	running  vmState = "running"
	starting vmState = "starting"
	stopping vmState = "stopping"
	stopped  vmState = "stopped"
	failed   vmState = "failed" // its unit
	dead     vmState = "dead"   // a plain run's runner went without a word
	broken   vmState = "broken" // its file
)

// runs reports whether there is something to stop.
func (s vmState) runs() bool { return s == running || s == starting || s == stopping }

// judge says what a VM is, from the record and its unit. If both say that it runs,
// the lock decides, which only one of them can hold: a record counts as alive only
// if its runner holds it.
func (in *inspector) judge(i *inspected) error {
	i.State = stopped
	rerr := error(fs.ErrNotExist)
	if in.root != "" {
		i.found, rerr = state.Read(in.root, i.VM)
	}
	unitUp := i.Systemd != nil && i.Systemd.Up()
	switch {
	case i.found != nil && i.found.Dead == "":
		i.fromRecord()
		if unitUp {
			i.Detail = i.Unit + " is " + i.Systemd.Active + " too, but this run holds the VM's lock"
			i.Hint = "systemctl stop " + i.Unit
		}
	case i.Systemd != nil && i.Systemd.Active != "inactive":
		i.fromUnit(*i.Systemd)
	case i.found != nil:
		i.fromDead()
	default:
		return in.withoutRecord(i, rerr)
	}
	return nil
}

// fromRecord takes what the runner of a VM that runs wrote down.
func (i *inspected) fromRecord() {
	r := i.found.Record
	i.State = running
	if r.Ready == nil {
		i.State = starting
	}
	if !r.VMM.Alive() {
		i.State, i.Detail = starting, "between two boots of the guest, or ending"
	}
	if i.spec != nil && i.File != r.File {
		i.Detail = "it runs from another file: " + r.File
	}
	i.File, i.Hypervisor, i.Version, i.Accel = r.File, r.Hypervisor, r.HVVersion, r.Accel
	i.Started, i.Ready, i.Delivered = r.Started, r.Ready, r.Delivered
	i.RunnerPID, i.VMMPID, i.VMMUser = r.Runner.PID, r.VMM.PID, &r.VMMUser
}

// fromDead says what a runner that is gone has left.
func (i *inspected) fromDead() {
	i.State, i.Detail = dead, "left behind by a crash: "+i.found.Dead
	i.Hint = "nothing runs, and the next start clears it: vmcred run " + i.VM
	if strings.HasPrefix(i.found.Dead, "the host") {
		return
	}
	if v := i.found.VMM; v.Start != 0 && v.Alive() {
		i.VMMPID = v.PID
		i.Detail += fmt.Sprintf("; its hypervisor, process %d, still runs", v.PID)
		i.Hint = fmt.Sprintf("end it before the next start: kill %d", v.PID)
	}
}

// fromUnit takes systemd's words for a unit that runs or failed.
func (i *inspected) fromUnit(u systemctl.Unit) {
	i.RunnerPID, i.Started = u.MainPID, u.Since
	journal := "journalctl -u " + i.Unit
	switch u.Active {
	case "active", "reloading", "refreshing":
		i.State = running
		if i.spec != nil && strings.HasPrefix(i.Unit, "vmcred@") && !u.Since.IsZero() {
			i.Ready = &state.Ready{At: u.Since, By: string(i.spec.Notify)}
		}
	case "activating":
		i.State, i.Detail = starting, "systemd: "+u.Sub
		if u.Sub == "auto-restart" {
			i.Detail = "it ended, and systemd starts it again: " + why(u)
			i.Hint = journal
		}
	case "deactivating":
		i.State = stopping
	case "failed":
		i.State, i.Detail, i.Hint = failed, why(u), journal
	default:
		i.State, i.Detail = stopped, "systemd: "+u.Active
	}
}

// why is what ended a unit's last run.
func why(u systemctl.Unit) string {
	switch {
	case u.Result == "start-limit-hit":
		return "it was started too often in a short time"
	case u.Result == "exit-code" && u.ExitStatus == exitRefused:
		return "refused (status 78): something is wrong with its file or its credentials"
	case u.Result == "exit-code" && u.ExitStatus == 243:
		return "a file of its LoadCredential= is missing (status 243)"
	case u.Result == "exit-code":
		return fmt.Sprintf("it ended with status %d", u.ExitStatus)
	}
	return "systemd: " + u.Result
}

// withoutRecord is for a VM without a record of its own, and whose unit does not
// run. Somebody may hold its lock all the same.
func (in *inspector) withoutRecord(i *inspected, rerr error) error {
	if in.without != nil {
		i.Detail = in.without.Error() + ": only what vmcred run started is known"
	}
	if errors.Is(rerr, fs.ErrNotExist) && in.root == "" {
		return nil
	}
	var (
		untrusted *state.UntrustedError
		none      *state.RecordError
	)
	pid, held, err := state.Held(in.root, i.VM)
	switch {
	case errors.Is(rerr, fs.ErrNotExist), errors.As(rerr, &none), errors.As(rerr, &untrusted):
	case errors.Is(rerr, os.ErrPermission):
		i.Detail = "its runtime directory is closed to you"
		return nil
	default:
		return fmt.Errorf("reading the record of %s: %w", i.VM, rerr)
	}
	if err != nil || !held {
		return nil // nobody holds a lock that is not there or is no lock
	}
	i.State, i.RunnerPID = starting, pid
	i.Detail = "its lock is held, and there is no record yet"
	if none != nil {
		i.State, i.Detail = running, none.Error()
	}
	if untrusted != nil {
		i.State, i.RunnerPID = running, 0
		i.Detail = "so says its lock, which " + i.Unit + " does not hold: " + untrusted.Error()
	}
	return nil
}
