// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) unitsCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "units VM",
		Short: "print the systemd drop-in that hands a VM's unit its credentials",
		Long: `Print the drop-in for the VM's unit, vmcred@NAME.service: one LoadCredential=
line for each credential whose file the VM's file names. It changes nothing.

Where vmcred's generator is installed, systemd has the same by itself, of every VM
in /etc/vmcred/vms, after systemctl daemon-reload. Where it is not, the first lines
say where it belongs. A VM with shared directories needs more files: a socket and a
service for each. --output writes all of them below a directory that is there, and
removes those of shares that the VM has no more.`,
		Example: `  vmcred units test-vm
  mkdir -p /etc/systemd/system/vmcred@test-vm.service.d
  vmcred units test-vm > /etc/systemd/system/vmcred@test-vm.service.d/vmcred.conf
  vmcred units test-vm --output /etc/systemd/system`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			spec, warnings, err := a.load(args[0])
			if err != nil {
				return err
			}
			a.showProblems(a.stderr, warnings)
			if problems := unitProblems(spec); len(problems) > 0 {
				return &runner.RefusedError{Problems: problems}
			}
			if c.Flags().Changed("output") {
				return a.writeUnits(c.Context(), spec, output)
			}
			return a.printUnit(spec)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "write all files below `DIR`: "+unit.Dir)
	return c
}

// printUnit prints the drop-in alone, which can be redirected to where it belongs.
func (a *app) printUnit(spec *vm.Spec) error {
	text, err := unit.DropIn(spec)
	if err != nil {
		return refusedError(err)
	}
	if n := len(unit.Served(spec)); n > 0 {
		a.showProblems(a.stderr, vm.Problems{{
			Severity: vm.Note, Pos: vm.Pos{File: spec.File}, Field: "shares",
			Message: "this is the drop-in only, and it wants the units of " + count(n, "share"),
			Hint:    fmt.Sprintf("write all of them: vmcred units %s --output %s", spec.Name, unit.Dir),
		}})
	}
	_, err = a.out.Write(text)
	return err
}

// writeUnits writes all files and says which.
func (a *app) writeUnits(ctx context.Context, spec *vm.Spec, dir string) error {
	// A mistyped one would be made, and systemd would never look there.
	if _, err := os.Stat(dir); err != nil {
		return refusedError(&fileError{"--output: " + console.QuotePath(dir) + " is no directory", unit.Dir + " is systemd's; mkdir -p makes another"})
	}
	if err := a.sharePlaces(spec); err != nil {
		return err
	}
	var d unit.Virtiofsd
	if len(unit.Served(spec)) > 0 {
		found, err := virtiofs.Probe(ctx, virtiofs.Options{})
		if err != nil {
			return refusedError(err)
		}
		d = unit.Virtiofsd{Path: found.Path, Legacy: found.Legacy}
	}
	files, err := unit.Files(spec, d)
	if err != nil {
		return refusedError(err)
	}
	wanted := map[string]bool{}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := replaceFile(path, f.Text); err != nil {
			return err
		}
		wanted[f.Path] = true
		fmt.Fprintf(a.out, "wrote %s\n", path)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !unit.IsShareUnit(spec.Name, e.Name()) || wanted[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "removed %s\n", filepath.Join(dir, e.Name()))
	}
	fmt.Fprintf(a.out, "\nnext:\n  systemctl daemon-reload\n  vmcred check %s\n  systemctl start %s\n", spec.Name, spec.Unit)
	return nil
}

// sharePlaces: systemd follows a share's path whenever the daemon's unit starts.
func (a *app) sharePlaces(spec *vm.Spec) error {
	c := hostcheck.New(spec)
	for i := range spec.Shares {
		c.SharePlace(i)
	}
	problems := vm.Problems(c.Problems())
	if fatal := problems.Fatal(); len(fatal) > 0 {
		return &runner.RefusedError{Problems: fatal}
	}
	a.showProblems(a.stderr, problems)
	return nil
}

// replaceFile writes a file that everyone may read; nobody sees the half of it.
func replaceFile(path string, text []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".vmcred-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// completeVM offers the names of the VMs that have a file.
func (a *app) completeVM(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	dir, err := config.Dir(a.uid, a.getenv)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names, err := config.Names(dir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveDefault
}
