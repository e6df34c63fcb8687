// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// lookVars looks whether the store has what a VM declares with var:, but for what is
// present by another way. No value is read.
func (a *app) lookVars(ctx context.Context, spec *vm.Spec, present []string) vm.Problems {
	var all []vm.Credential
	for _, c := range spec.Credentials {
		if c.Source.Kind == vm.SourceVar && !slices.Contains(present, c.Host) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil
	}
	about := func(c vm.Credential, severity vm.Severity, message, hint string) vm.Problem {
		return vm.Problem{Severity: severity, Pos: c.Pos, Field: "credentials." + c.Host, Message: message, Hint: hint}
	}
	f, err := a.hostStore()
	var have map[string]int64
	if err == nil {
		have, err = lengths(ctx, f)
	}
	if errors.Is(err, fs.ErrPermission) {
		return vm.Problems{about(all[0], vm.Warning, fmt.Sprintf("it cannot be looked for by you: %v", err), "the broker reads them as root")}
	}
	if err != nil {
		return vm.Problems{about(all[0], vm.Error, err.Error(), hintOf(err))}
	}
	var out vm.Problems
	for _, c := range all {
		bytes, ok := have[c.Source.Path]
		switch {
		case !ok:
			hint := "make it; see docs/vars.md"
			if near := vm.Nearest(c.Source.Path, slices.Sorted(maps.Keys(have))); near != "" {
				hint = "did you mean " + near + "?"
			}
			out = append(out, about(c, vm.Error, fmt.Sprintf("there is no %s in %s", c.Source.Path, f), hint))
		case bytes == 0 && !c.AllowEmpty:
			out = append(out, about(c, vm.Error, fmt.Sprintf("%s in %s is empty", c.Source.Path, f), "make it anew, or say allow-empty: true"))
		}
	}
	return out
}

// lengths are those of all values of a store, by generator and file.
func lengths(ctx context.Context, s store.Store) (map[string]int64, error) {
	out := map[string]int64{}
	for m, err := range s.List(ctx) {
		if err != nil {
			return nil, err
		}
		for _, f := range m.Files {
			out[m.Ref.Generator+"/"+f.Name] = f.Bytes
		}
	}
	return out, nil
}
