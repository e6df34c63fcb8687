// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor"
	"github.com/vmcred/vmcred/hypervisor/qemu"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// load reads the VM's file. Warnings come with a specification that can be used.
func (a *app) load(arg string) (*vm.Spec, vm.Problems, error) {
	path, err := config.Find(arg, a.uid, a.getenv)
	if err != nil {
		return nil, nil, refusedError(err)
	}
	spec, problems := config.Load(path)
	if len(problems.Fatal()) > 0 {
		return nil, nil, &runner.RefusedError{Problems: problems}
	}
	a.ownShares(spec)
	return spec, problems, nil
}

// ownShares fills in what a share's daemon is here: in the VM's unit one of a unit
// of its own, as it could not start any; for root one of the VM's own user.
func (a *app) ownShares(spec *vm.Spec) {
	served := a.uid != 0 && a.inUnit() && a.getenv("USER") == unit.User(spec.Name)
	for i := range spec.Shares {
		sh := &spec.Shares[i]
		switch {
		case sh.Socket != "":
		case served:
			sh.Socket = unit.ShareSocket(spec.Name, sh.Tag)
		case a.uid == 0 && sh.User == "":
			sh.User = unit.ShareUser(spec.Name)
		}
	}
}

// unitProblems says why a VM's unit cannot have its credentials. Where files may be is
// said by the host's own file, whoever looks, and for the host's VMs only.
func unitProblems(spec *vm.Spec) vm.Problems {
	var problems vm.Problems
	if config.IsHosts(spec.File) {
		host, none := config.LoadHostIn(filepath.Dir(config.SystemDir))
		if problems = none; host != nil {
			problems = host.CheckSources(spec)
		}
	}
	var d *unit.DropInError
	if _, err := unit.DropIn(spec); errors.As(err, &d) {
		problems = append(problems, d.Problem())
	}
	return problems
}

// refusedError is one reason not to start, with its hint.
func refusedError(err error) error {
	return &runner.RefusedError{Problems: vm.Problems{{Message: err.Error(), Hint: hintOf(err)}}}
}

// openError is an error of opening the sources, which may know by itself what it is.
func openError(err error) error {
	var (
		refused *runner.RefusedError
		failed  *runner.FailedError
	)
	if errors.As(err, &refused) || errors.As(err, &failed) {
		return err
	}
	return refusedError(err)
}

// driver returns the driver for the VM's hypervisor.
func (a *app) driver(spec *vm.Spec, root string) (hypervisor.Driver, error) {
	drivers := map[string]hypervisor.Driver{
		"cloud-hypervisor": cloudhypervisor.New(cloudhypervisor.Options{CacheDir: root}),
		"qemu":             qemu.New(qemu.Options{CacheDir: root}),
	}
	if d, ok := drivers[spec.Hypervisor]; ok {
		return d, nil
	}
	names := slices.Sorted(maps.Keys(drivers))
	return nil, &runner.RefusedError{Problems: vm.Problems{{
		Pos: vm.Pos{File: spec.File}, Field: "hypervisor",
		Message: spec.Hypervisor + " cannot be run by this version of vmcred",
		Hint:    "it runs " + strings.Join(names, ", "),
	}}}
}

// options is what run, plan and check share.
func (a *app) options(c *cobra.Command, spec *vm.Spec, f *sourceFlags) (runner.Options, error) {
	root, err := state.Root(a.uid, a.getenv)
	if err != nil {
		return runner.Options{}, refusedError(err)
	}
	d, err := a.driver(spec, a.cacheDir(root))
	if err != nil {
		return runner.Options{}, err
	}
	o := runner.Options{Spec: spec, Driver: d, Root: root, OneBoot: a.inUnit(), Force: a.force}
	b := a.hostBroker(spec)
	if b != nil && len(spec.Credentials) > 0 {
		o.Recorder = b
	}
	if o.Open, err = a.opener(c, spec, f, b); err != nil {
		return runner.Options{}, err
	}
	return o, nil
}

// cacheDir is where facts about this host are remembered until the next boot.
// In a unit the VM's user can write only its own runtime directory.
func (a *app) cacheDir(root string) string {
	return cmp.Or(state.UnitDir(a.getenv), root)
}

// inUnit reports whether systemd itself started this process (systemd.exec(5), $SYSTEMD_EXEC_PID).
func (a *app) inUnit() bool {
	return a.getenv("INVOCATION_ID") != "" && a.getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(a.pid)
}

// identity is the user the VMM runs as: for root the VM's own system user, for
// everyone else nil, which is himself.
func (a *app) identity(spec *vm.Spec) (*launch.Identity, error) {
	if a.uid != 0 {
		return nil, nil
	}
	id, err := launch.Lookup(unit.User(spec.Name))
	if err != nil {
		return nil, &runner.RefusedError{Problems: vm.Problems{{
			Message: fmt.Sprintf("no hypervisor runs as root, and the VM's own user is missing: %v", err),
			Hint:    "make it with: " + unit.UserCommand(spec.Name),
		}}}
	}
	return id, nil
}

// lookIdentity is identity for commands that start nothing: a user that is
// missing is a warning, or a word if the VM's unit will make it.
func (a *app) lookIdentity(spec *vm.Spec, problems vm.Problems) (*launch.Identity, vm.Problems) {
	id, err := a.identity(spec)
	var refused *runner.RefusedError
	if errors.As(err, &refused) {
		for _, p := range refused.Problems {
			p.Severity = vm.Warning
			if filepath.Dir(spec.File) == config.SystemDir && spec.Unit == unit.OwnUnit(spec.Name) {
				p.Severity, p.Hint = vm.Note, "its unit makes it before the first start; for a plain run: "+unit.UserCommand(spec.Name)
			}
			problems = append(problems, p)
		}
	}
	return id, problems
}
