// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/systemctl"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// inspected is what is known about one VM: what its file says, what its runner
// wrote down, what systemd says of its unit. status and list show it.
type inspected struct {
	VM         string            `json:"vm"`
	State      vmState           `json:"state"`
	Detail     string            `json:"detail,omitempty"`
	Hint       string            `json:"hint,omitempty"`
	File       string            `json:"file,omitempty"`
	Hypervisor string            `json:"hypervisor,omitempty"`
	Version    string            `json:"hypervisor_version,omitempty"`
	Accel      string            `json:"accel,omitempty"`
	Started    time.Time         `json:"started,omitzero"`
	Ready      *state.Ready      `json:"ready,omitempty"`
	RunnerPID  int               `json:"runner_pid,omitempty"`
	VMMPID     int               `json:"vmm_pid,omitempty"`
	VMMUser    *int              `json:"vmm_uid,omitempty"`
	Unit       string            `json:"unit,omitempty"`
	Systemd    *systemctl.Unit   `json:"systemd,omitempty"` // nil: not asked, or not known there
	Autostart  bool              `json:"autostart"`
	Declared   int               `json:"credentials_declared"`
	Delivered  []state.Delivered `json:"credentials,omitempty"` // from a record that can be believed
	Problems   []problemJSON     `json:"problems,omitempty"`    // of the VM's file
	// RestartNeeded: a source has another value than the VM was given.
	RestartNeeded bool   `json:"restart_needed"`
	Unknown       string `json:"unknown,omitempty"` // why it is not known what it was given

	spec     *vm.Spec // nil: there is no file, or it is broken
	found    *state.Found
	problems vm.Problems
}

// Close lets go of the VM's runner.
func (i *inspected) Close() { i.found.Close() }

// inspector looks at VMs.
type inspector struct {
	root    string             // of runtime directories; empty: there is none
	systemd *systemctl.Systemd // nil: not asked
	without error              // why it is not asked, for root
}

// inspector finds out whom to ask. Only root's VMs have units: those of an
// ordinary user are plain runs.
func (a *app) inspector() (*inspector, error) {
	in := &inspector{}
	root, err := state.Root(a.uid, a.getenv)
	var none *state.NoRuntimeDirError
	if err != nil && !errors.As(err, &none) {
		return nil, err
	}
	in.root = root
	if a.uid == 0 {
		in.systemd, in.without = systemctl.Find(a.getenv("PATH"))
	}
	return in, nil
}

// one inspects the VM that an argument names. It is an error if there is no such
// VM, neither a file nor anything that runs. The caller closes it.
func (a *app) one(ctx context.Context, in *inspector, arg string) (*inspected, error) {
	path, err := config.Find(arg, a.uid, a.getenv)
	name := arg
	if err == nil {
		if name, err = config.FileName(path); err != nil {
			return nil, refusedError(err)
		}
	} else if config.CheckName(arg) != nil {
		return nil, refusedError(err)
	}
	i := &inspected{VM: name}
	i.readFile(path, err)
	if err := in.ask(ctx, []*inspected{i}); err != nil {
		return nil, err
	}
	if i.State == broken && (err != nil || missingFile(path)) {
		i.Close()
		return nil, a.noSuchVM(i, name, err)
	}
	return i, nil
}

// named inspects the VM that an argument names, for a command about it.
func (a *app) named(ctx context.Context, arg string) (*inspector, *inspected, error) {
	in, err := a.inspector()
	if err != nil {
		return nil, nil, err
	}
	i, err := a.one(ctx, in, arg)
	return in, i, err
}

func missingFile(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// noSuchVM is for a VM of which there is nothing. An ordinary user may mean one of
// the host's.
func (a *app) noSuchVM(i *inspected, name string, err error) error {
	if err == nil {
		return &runner.RefusedError{Problems: i.problems}
	}
	if _, serr := os.Lstat(filepath.Join(state.SystemRoot, name)); serr == nil && a.uid != 0 {
		return &runner.RefusedError{Problems: vm.Problems{{
			Message: "the VM " + name + " is not yours: it belongs to this host",
			Hint:    "become root for it: sudo vmcred …",
		}}}
	}
	return refusedError(err)
}

// all inspects every VM that has a file where names are looked up, and every one
// that runs or was left behind. The caller closes them.
func (a *app) all(ctx context.Context, in *inspector) ([]*inspected, error) {
	dir, err := config.Dir(a.uid, a.getenv)
	if err != nil {
		return nil, refusedError(err)
	}
	files, err := config.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, refusedError(fmt.Errorf("looking for VMs: %w", err))
	}
	var out []*inspected
	known := map[string]bool{}
	for _, f := range files {
		i := &inspected{VM: f.Name}
		i.readFile(f.Path, f.Err)
		out, known[f.Name] = append(out, i), true
	}
	names, err := in.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !known[name] && config.CheckName(name) == nil {
			out = append(out, &inspected{VM: name, Unit: config.DefaultUnit(name)})
		}
	}
	if err := in.ask(ctx, out); err != nil {
		return nil, err
	}
	// A directory that nobody uses and that no file belongs to is no VM.
	return slices.DeleteFunc(out, func(i *inspected) bool {
		return i.State == stopped && i.File == "" && len(i.problems) == 0
	}), nil
}

func (in *inspector) names() ([]string, error) {
	if in.root == "" {
		return nil, nil
	}
	return state.Names(in.root)
}

// readFile takes what the VM's file says; err is why it was not found.
func (i *inspected) readFile(path string, err error) {
	i.Unit = config.DefaultUnit(i.VM)
	if err != nil {
		i.problems = vm.Problems{{Pos: vm.Pos{File: path}, Message: err.Error(), Hint: hintOf(err)}}
		return
	}
	i.File = path
	spec, problems := config.Load(path)
	i.problems, i.Problems = problems, withSeverity(problems)
	if spec == nil {
		return
	}
	i.spec, i.File = spec, spec.File
	i.Hypervisor, i.Unit, i.Autostart = spec.Hypervisor, spec.Unit, spec.Autostart
	i.Declared = len(spec.Credentials) + len(spec.Static)
}

// ask reads the records, asks systemd about all units at once, and says what is so.
func (in *inspector) ask(ctx context.Context, vms []*inspected) error {
	var names []string
	for _, i := range vms {
		names = append(names, i.Unit)
	}
	var units map[string]systemctl.Unit
	if in.systemd != nil {
		var err error
		if units, err = in.systemd.Show(ctx, names...); err != nil {
			return err
		}
	}
	for _, i := range vms {
		if u, ok := units[i.Unit]; ok && (u.Load != "not-found" || u.Up()) {
			u.StatusText = console.OneLine(u.StatusText)
			i.Systemd = &u
		}
		if err := in.judge(i); err != nil {
			return err
		}
		if fatal := i.problems.Fatal(); len(fatal) > 0 && i.State == stopped {
			i.State, i.Detail, i.Hint = broken, fatal[0].Error(), fatal[0].Hint
		}
		if in.systemd == nil && in.without == nil {
			i.Unit = "" // an ordinary user's
		}
	}
	return nil
}
