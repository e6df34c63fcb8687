// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/network"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) netCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "net COMMAND",
		Short: "make the taps of a VM that does not run, or take them away",
		Long: `Make the taps that a VM's file asks for (interfaces: with bridge: or isolated:),
or take them away. Root's vmcred run does both by itself, and so does the VM's
unit, by vmcred-net@NAME.service. By hand this is for another user who runs the
VM, and to clean up after a run that was killed.`,
		Example: `  vmcred net up test-vm
  vmcred net down test-vm`,
		DisableFlagsInUseLine: true,
		Args:                  knownCommand,
		ValidArgsFunction:     cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			c.SetOut(a.stderr)
			return errors.Join(c.Help(), &shownError{exitUsage})
		},
	}
	c.AddCommand(&cobra.Command{
		Use:               "up VM",
		Short:             "make the VM's taps anew, as its file has them, for its own user",
		Example:           "  vmcred net up test-vm",
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE:              func(_ *cobra.Command, args []string) error { return a.netUp(args[0]) },
	}, &cobra.Command{
		Use:               "down VM",
		Short:             "take away the taps that were made for the VM, and their rules",
		Long:              "Take away the taps that were made for the VM, and their rules. The VM's file is not\nread, and need not be there any more.",
		Example:           "  vmcred net down test-vm",
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE:              func(_ *cobra.Command, args []string) error { return a.netDown(vmName(args[0])) },
	})
	return c
}

// netUp makes the taps for the VM's own user.
func (a *app) netUp(arg string) error {
	spec, warnings, err := a.load(arg)
	if err != nil {
		return err
	}
	a.showProblems(a.stderr, warnings)
	if err := a.mayChangeNet("up", spec.Name); err != nil {
		return err
	}
	id, err := a.identity(spec)
	if err != nil {
		return err
	}
	if err := network.Up(spec.Name, id.UID, spec.Interfaces); err != nil {
		return refusedError(err)
	}
	made := slices.DeleteFunc(slices.Clone(spec.Interfaces), func(n vm.Interface) bool { return !n.Made() })
	for _, nic := range made {
		fmt.Fprintf(a.out, "made the tap %s of %s: %s\n", nic.ID, id.User, attachment(nic))
	}
	if len(made) == 0 {
		fmt.Fprintf(a.out, "%s has no tap that is to be made (bridge: or isolated:)\n", spec.Name)
	}
	return nil
}

func attachment(nic vm.Interface) string {
	switch {
	case nic.Bridge == "":
		return "isolated, it reaches nothing"
	case nic.Isolated:
		return "on " + nic.Bridge + ", isolated from this host and other taps"
	}
	return "on " + nic.Bridge
}

func (a *app) netDown(name string) error {
	if err := config.CheckName(name); err != nil {
		return refusedError(err)
	}
	if err := a.mayChangeNet("down", name); err != nil {
		return err
	}
	if err := network.Down(name); err != nil {
		return refusedError(err)
	}
	return nil
}

// mayChangeNet: only root's word, and not under a VM that runs.
func (a *app) mayChangeNet(verb, name string) error {
	if a.uid != 0 {
		return refusedError(&network.Error{Message: "only root makes taps and takes them away", Tip: "as root: vmcred net " + verb + " " + name})
	}
	tap, err := network.InUse(name)
	if err == nil && tap != "" {
		err = &network.Error{Message: fmt.Sprintf("VM %s runs: its tap %s is in use", name, tap), Tip: "stop it first: vmcred stop " + name}
	}
	if err != nil {
		return refusedError(err)
	}
	return nil
}

// setUpNet makes the taps around a run of root's. For other users, a unit's among
// them, they are there or the VM is refused.
func (a *app) setUpNet(spec *vm.Spec, id *launch.Identity) func() (func() error, error) {
	if id == nil || !slices.ContainsFunc(spec.Interfaces, vm.Interface.Made) {
		return nil
	}
	return func() (func() error, error) {
		if err := network.Up(spec.Name, id.UID, spec.Interfaces); err != nil {
			return nil, &runner.RefusedError{Problems: vm.Problems{{
				Pos: vm.Pos{File: spec.File}, Field: "interfaces", Message: err.Error(), Hint: hintOf(err),
			}}}
		}
		return func() error { return network.Down(spec.Name) }, nil
	}
}
