// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// Prepared is everything known before a VM starts.
type Prepared struct {
	Info     hypervisor.Info
	Set      *credential.Set
	Plan     delivery.Plan
	Read     time.Time         // when the values began to be read
	Versions map[string]string // of the values whose source knows one, by name on the host
	Warnings vm.Problems
}

// Close wipes the values.
func (p *Prepared) Close() {
	if p != nil && p.Set != nil {
		_ = p.Set.Close()
	}
}

// Prepare does all that comes before a start, and starts nothing. With a
// *RefusedError or a *FailedError the result still holds the warnings.
func Prepare(ctx context.Context, o Options, arena *secret.Arena) (*Prepared, error) {
	return prepare(ctx, o, arena)
}

func prepare(ctx context.Context, o Options, arena *secret.Arena) (*Prepared, error) {
	info, err := o.Driver.Probe(ctx)
	if err != nil {
		return nil, refused(vm.Problem{Pos: vm.Pos{File: o.Spec.File}, Field: "hypervisor", Message: err.Error(), Hint: hintOf(err)})
	}
	p := &Prepared{Info: info}
	problems := Problems(o, info)
	problems, failed := p.collect(ctx, o, arena, problems)
	if p.Set != nil {
		plan, refusals := delivery.Make(o.Driver.Offers(o.Spec, info), delivery.Guest{Systemd: o.Spec.Guest.Systemd}, p.Set.Metas())
		p.Plan = plan
		for _, r := range refusals {
			problems = append(problems, refusal(o.Spec, r))
		}
		problems = append(problems, newlines(o.Spec, p.Set.Metas())...)
	}
	p.Warnings = warnings(problems)
	if fatal := problems.Fatal(); len(fatal) > 0 {
		p.Close()
		p.Set = nil
		return p, &RefusedError{Problems: fatal}
	}
	if failed != nil {
		return p, failed
	}
	return p, nil
}

// collect reads the values. What keeps them from being read now, and may not the next
// time, is an error of its own: what is wrong for good is said before it.
func (p *Prepared) collect(ctx context.Context, o Options, arena *secret.Arena, problems vm.Problems) (vm.Problems, error) {
	var (
		refused *RefusedError
		failed  *FailedError
	)
	p.Read = time.Now()
	src, err := o.Open(ctx, arena)
	switch {
	case errors.As(err, &refused):
		return append(problems, refused.Problems...), nil
	case errors.As(err, &failed):
		return problems, failed
	case err != nil:
		return append(problems, vm.Problem{Message: err.Error(), Hint: hintOf(err)}), nil
	}
	set, more := Collect(ctx, o.Spec, src)
	p.Set, p.Versions = set, versions(o.Spec, src)
	_ = src.Close() // only read from: nothing to lose
	return append(problems, more...), nil
}

func versions(spec *vm.Spec, src credential.Source) map[string]string {
	known, ok := src.(credential.Versioned)
	if !ok {
		return nil
	}
	out := map[string]string{}
	for _, c := range spec.Credentials {
		if v := known.Version(c.Host); v != "" {
			out[c.Host] = v
		}
	}
	return out
}

// Problems is what the driver cannot do, and what the VMM's user may not open.
func Problems(o Options, info hypervisor.Info) vm.Problems {
	problems := vm.Problems(o.Driver.Check(o.Spec, info))
	// Root without an identity only looks: no VMM would run as root.
	if ac, ok := o.Driver.(hypervisor.AccessChecker); ok && (o.Identity != nil || os.Geteuid() != 0) {
		for _, p := range ac.CheckAccess(o.Spec, info, o.Identity) {
			// Of what is not there, or cannot be looked at, both say something:
			// once is enough, in the words that say who may not.
			i := slices.IndexFunc(problems, func(q vm.Problem) bool { return q.Field == p.Field && q.Severity == vm.Error })
			switch {
			case i < 0:
				problems = append(problems, p)
			case problems[i].Message != p.Message:
				problems[i] = p
			}
		}
	}
	return problems
}

func refusal(spec *vm.Spec, r delivery.Refusal) vm.Problem {
	p := vm.Problem{Pos: vm.Pos{File: spec.File}, Message: r.Message, Hint: r.Hint}
	for _, c := range spec.Credentials {
		if c.Host == r.Host && c.Guest == r.Guest {
			p.Pos, p.Field = c.Pos, "credentials."+c.Host
		}
	}
	for _, s := range spec.Static {
		if r.Host == "" && s.Name == r.Guest {
			p.Pos, p.Field = s.Pos, "static."+s.Name
		}
	}
	return p
}

// newlines warns of values that end in a newline: it is part of the value, and
// often a password that nobody can log in with.
func newlines(spec *vm.Spec, metas []credential.Meta) vm.Problems {
	var out vm.Problems
	for _, m := range metas {
		if !m.TrailingNewline || m.Kind != credential.Secret {
			continue
		}
		for _, c := range spec.Credentials {
			if c.Host == m.Host {
				out = append(out, vm.Problem{
					Severity: vm.Warning, Pos: c.Pos, Field: "credentials." + c.Host,
					Message: "its value ends in a newline, which is handed over as part of it",
					Hint:    fmt.Sprintf("if %s should not have it, make the value without one (tr -d '\\n')", m.Guest),
				})
			}
		}
	}
	return out
}

func warnings(problems vm.Problems) vm.Problems {
	var out vm.Problems
	for _, p := range problems {
		if p.Severity != vm.Error {
			out = append(out, p)
		}
	}
	return out
}
