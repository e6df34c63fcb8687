// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// Collect reads the value of everything the specification declares. The set is
// complete, or nil with every reason why not; warnings come with either.
// The caller closes the set.
func Collect(ctx context.Context, spec *vm.Spec, src credential.Source) (*credential.Set, vm.Problems) {
	set := credential.NewSet()
	var problems vm.Problems
	for _, c := range spec.Credentials {
		if p := addSecret(ctx, set, spec.Unit, c, src); p != nil {
			problems = append(problems, *p)
		}
	}
	for _, s := range spec.Static {
		if err := set.AddStatic(s.Name, s.Value); err != nil {
			problems = append(problems, vm.Problem{Pos: s.Pos, Field: "static." + s.Name, Message: err.Error(), Hint: hintOf(err)})
		}
	}
	if spec.Notify == vm.NotifyGuest {
		if err := set.AddStatic(credential.NotifySocket, notifyAddress(spec.Vsock)); err != nil {
			problems = append(problems, vm.Problem{Pos: vm.Pos{File: spec.File}, Field: "notify", Message: err.Error(), Hint: "with notify: guest it is made by vmcred"})
		}
	}
	for i, s := range spec.OEMStrings {
		if err := set.AddOEMString(s); err != nil {
			problems = append(problems, vm.Problem{
				Pos: vm.Pos{File: spec.File}, Field: fmt.Sprintf("oem-strings[%d]", i), Message: err.Error(), Hint: hintOf(err),
			})
		}
	}
	problems = append(problems, undeclared(ctx, spec, src)...)
	if len(problems.Fatal()) > 0 {
		_ = set.Close()
		return nil, problems
	}
	return set, problems
}

func addSecret(ctx context.Context, set *credential.Set, unit string, c vm.Credential, src credential.Source) *vm.Problem {
	p := &vm.Problem{Pos: c.Pos, Field: "credentials." + c.Host}
	v, err := src.Open(ctx, c.Host)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Message, p.Hint = missing(unit, c, src)
		return p
	case err != nil:
		p.Message, p.Hint = strings.TrimPrefix(err.Error(), c.Host+": "), hintOf(err)
		return p
	case v.Len() == 0 && !c.AllowEmpty:
		p.Message = "its value is empty"
		p.Hint = "look at what makes it (systemd turns a source that fails into an empty credential), or say allow-empty: true"
		return p
	}
	if err := set.AddSecret(c.Host, c.Guest, v); err != nil {
		p.Message, p.Hint = err.Error(), hintOf(err)
		return p
	}
	return nil
}

func missing(unit string, c vm.Credential, src credential.Source) (message, hint string) {
	byUnit := fmt.Sprintf("give LoadCredential=%s:PATH to the unit, or --load-credential %s:PATH or --credentials DIR to vmcred run", c.Host, c.Host)
	switch c.Source.Kind {
	case vm.SourceFile:
		return fmt.Sprintf("%s does not exist", c.Source.Path), "make the file, or correct file:"
	case vm.SourceUnit:
		return fmt.Sprintf("declared, but not found in %s", src), byUnit
	case vm.SourceEncrypted:
		return fmt.Sprintf("systemd alone can decrypt %s, and has put nothing into %s", c.Source.Path, src),
			fmt.Sprintf("start it as %s (systemctl daemon-reload, if this line is new), or give --load-credential %s:PATH or --credentials DIR", unit, c.Host)
	default:
		return fmt.Sprintf("nothing reads %s: here yet, and it is not found in %s", c.Source.Kind, src), byUnit
	}
}

// undeclared warns of what the source holds and the VM's file does not name.
func undeclared(ctx context.Context, spec *vm.Spec, src credential.Source) vm.Problems {
	names, err := src.Names(ctx)
	if err != nil {
		return vm.Problems{{
			Pos: vm.Pos{File: spec.File}, Field: "credentials", Message: err.Error(), Hint: hintOf(err),
		}}
	}
	declared := make(map[string]bool, len(spec.Credentials))
	for _, c := range spec.Credentials {
		declared[c.Host] = true
	}
	var out vm.Problems
	for _, n := range names {
		if !declared[n] {
			out = append(out, vm.Problem{
				Severity: vm.Warning, Pos: vm.Pos{File: spec.File}, Field: "credentials",
				Message: fmt.Sprintf("%s holds %s, which the VM's file does not declare: it is not handed over", src, n),
				Hint:    fmt.Sprintf("add \"%s: {}\" under credentials:, or do not give it to this VM", n),
			})
		}
	}
	return out
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	var large *secret.TooLargeError
	if errors.As(err, &large) {
		return "systemd in the guest takes at most 1 MiB a credential: hand over a key and keep the data elsewhere"
	}
	return ""
}
