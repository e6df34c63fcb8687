// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/check"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) checkCommand() *cobra.Command {
	var (
		sources sourceFlags
		asJSON  bool
	)
	c := &cobra.Command{
		Use:   "check VM",
		Short: "look for mistakes in a VM's file, its names and this host; reads no value",
		Long: `Look for mistakes: in the VM's file, in what this host has for it, and between
the names a credential has on its way: in the unit or directory it comes from,
under credentials:, in the guest, and in the guest's own units if the file names
them (guest: {units: …}). It reads no value and starts nothing.

Exit status: 0 nothing is wrong (there may be warnings), 78 something is.`,
		Example: `  vmcred check test-vm
  vmcred check test-vm --credentials /run/my-secrets
  vmcred check test-vm --json`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			return a.check(c, args[0], &sources, asJSON)
		},
	}
	sources.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) check(c *cobra.Command, arg string, sources *sourceFlags, asJSON bool) error {
	spec, problems, err := a.load(arg)
	if err == nil {
		var found vm.Problems
		found, err = a.findings(c, spec, sources)
		problems = append(problems, found...)
	}
	var refused *runner.RefusedError
	if errors.As(err, &refused) {
		problems = append(problems, refused.Problems...)
	} else if err != nil {
		return err
	}
	if asJSON {
		err = json.NewEncoder(a.out).Encode(checkResult(arg, problems))
	} else {
		a.showCheck(arg, problems)
	}
	if len(problems.Fatal()) > 0 {
		return &shownError{exitRefused}
	}
	return err
}

// findings is what is wrong beyond the file itself.
func (a *app) findings(c *cobra.Command, spec *vm.Spec, sources *sourceFlags) (vm.Problems, error) {
	var problems vm.Problems
	if config.IsHosts(spec.File) { // others may never be a unit
		problems = unitProblems(spec)
	}
	present, err := a.present(c, spec, sources)
	if err != nil {
		return nil, err
	}
	for _, cr := range spec.Credentials {
		if p := a.readable(cr, present); p != nil {
			problems = append(problems, *p)
		}
	}
	problems = append(problems, a.lookVars(c.Context(), spec, present)...)
	if present == nil {
		problems = append(problems, unseen(spec, vm.SourceUnit, "LoadCredential=")...)
		problems = append(problems, unseen(spec, vm.SourceEncrypted, "LoadCredentialEncrypted=")...)
	}
	var units []*unit.Unit
	if len(spec.Guest.Units) > 0 {
		found, more := unit.Load(spec.Guest.Units)
		units, problems = append([]*unit.Unit{}, found...), append(problems, more...)
	}
	problems = append(problems, check.Spec(spec, present, units)...)
	o, err := a.options(c, spec, sources)
	if err != nil {
		return problems, err
	}
	info, err := o.Driver.Probe(c.Context())
	if err != nil {
		return problems, refusedError(err)
	}
	o.Identity, problems = a.lookIdentity(spec, problems)
	return append(problems, runner.Problems(o, info)...), nil
}

// present is the names that a credentials directory or --load-credential
// holds, nil if neither is given.
func (a *app) present(c *cobra.Command, spec *vm.Spec, f *sourceFlags) ([]string, error) {
	if f.dir == "" && len(f.pairs) == 0 && a.getenv("CREDENTIALS_DIRECTORY") == "" {
		return nil, nil
	}
	given := *spec
	given.Credentials = nil // the VM's own files are not what was handed over
	open, err := a.opener(c, &given, f, nil)
	if err != nil {
		return nil, err
	}
	arena := secret.NewArena()
	defer arena.Close()
	src, err := open(c.Context(), arena)
	if err != nil {
		return nil, refusedError(err)
	}
	defer src.Close()
	names, err := src.Names(context.WithoutCancel(c.Context()))
	if err != nil {
		return nil, refusedError(err)
	}
	return append([]string{}, names...), nil
}

// unseen says which credentials of a kind nobody could look for, as a setting of the
// unit brings them.
func unseen(spec *vm.Spec, kind vm.SourceKind, setting string) vm.Problems {
	var names []string
	for _, cr := range spec.Credentials {
		if cr.Source.Kind == kind {
			names = append(names, cr.Host)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return vm.Problems{{
		Severity: vm.Note, Pos: vm.Pos{File: spec.File}, Field: "credentials",
		Message: strings.Join(names, ", ") + " not looked for: " + spec.Unit + " brings it by " + setting,
		Hint:    "where the values are at hand: vmcred check --credentials DIR",
	}}
}

// readable says what keeps a credential's own source from being read.
func (a *app) readable(cr vm.Credential, present []string) *vm.Problem {
	for _, name := range present {
		if name == cr.Host {
			return nil
		}
	}
	p := &vm.Problem{Pos: cr.Pos, Field: "credentials." + cr.Host}
	switch cr.Source.Kind {
	case vm.SourceEncrypted:
		if _, err := os.Stat(cr.Source.Path); errors.Is(err, fs.ErrNotExist) {
			p.Message, p.Hint = cr.Source.Path+" does not exist", fmt.Sprintf("make it: systemd-creds encrypt --name=%s FILE %s", cr.Host, cr.Source.Path)
			return p
		}
		return nil // only systemd opens it
	case vm.SourceFile:
		err := unix.Faccessat(unix.AT_FDCWD, cr.Source.Path, unix.R_OK, unix.AT_EACCESS)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrNotExist):
			p.Message, p.Hint = cr.Source.Path+" does not exist", "make the file, or correct file:"
		default:
			p.Severity = vm.Warning
			p.Message = fmt.Sprintf("%s cannot be read by you: %v", cr.Source.Path, err)
			p.Hint = "systemd reads it as root for a unit; vmcred run reads it as whoever starts it"
		}
		return p
	case vm.SourceSOPS:
		p.Severity = vm.Warning
		p.Message = fmt.Sprintf("nothing reads %s: here yet", cr.Source.Kind)
		p.Hint = "until then a LoadCredential= of the unit or --credentials has to bring it"
		return p
	}
	return nil
}

type checked struct {
	VM       string        `json:"vm"`
	OK       bool          `json:"ok"`
	Problems []problemJSON `json:"problems"`
}

type problemJSON struct {
	Severity string `json:"severity"`
	vm.Problem
}

func checkResult(arg string, problems vm.Problems) checked {
	return checked{VM: arg, OK: len(problems.Fatal()) == 0, Problems: withSeverity(problems)}
}

func withSeverity(problems vm.Problems) []problemJSON {
	out := []problemJSON{}
	for _, p := range worstFirst(problems) {
		out = append(out, problemJSON{p.Severity.String(), p})
	}
	return out
}

func (a *app) showCheck(arg string, problems vm.Problems) {
	st := styleOf(a.stdout, a.getenv)
	listProblems(a.out, st, problems)
	n := map[vm.Severity]int{}
	for _, p := range problems {
		n[p.Severity]++
	}
	switch {
	case n[vm.Error] > 0:
		fmt.Fprintf(a.out, "%s: %s, %s\n", arg, st.red(count(n[vm.Error], "error")), count(n[vm.Warning], "warning"))
	case n[vm.Warning] > 0:
		fmt.Fprintf(a.out, "%s: %s, %s\n", arg, st.green("no error"), count(n[vm.Warning], "warning"))
	default:
		fmt.Fprintf(a.out, "%s: %s\n", arg, st.green("nothing is wrong"))
	}
}
