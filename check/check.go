// SPDX-License-Identifier: Apache-2.0

// Package check finds the mistakes people make between the stages a
// credential's name goes through: the unit's LoadCredential= on the host, the
// key in the VM's file, the name in the guest, the guest unit's own
// LoadCredential=. It is pure: it gets names, and never a secret's value.
package check

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// Spec checks one VM. Present are the names that the credentials directory
// holds, nil if it is not known (no directory, or not started by a unit).
// Units are the guest's, as unit.Load has them; nil if the VM's file names none.
//
// Errors are sources that are missing, and two loose ends that differ only in
// case, separators or "host-": a name delivered and asked for by nobody beside
// one asked for and delivered by nobody. What may be meant so is a warning.
func Spec(spec *vm.Spec, present []string, units []*unit.Unit) vm.Problems {
	c := &checker{spec: spec, delivered: map[string]item{}}
	for _, cred := range spec.Credentials {
		c.delivered[cred.Guest] = item{"credentials." + cred.Host, cred.Host, cred.Pos}
	}
	for _, s := range spec.Static {
		c.delivered[s.Name] = item{"static." + s.Name, "", s.Pos}
	}
	for i, s := range spec.OEMStrings {
		if name, _, ok := oemCredential(s); ok {
			c.delivered[name] = item{fmt.Sprintf("oem-strings[%d]", i), "", vm.Pos{File: spec.File}}
		}
	}
	if present != nil {
		c.sources(present)
	}
	c.upperCase(present)
	c.statics()
	c.cmdline()
	if units == nil {
		if len(c.delivered) > 0 {
			c.add(vm.Note, vm.Pos{File: spec.File}, "guest.units", "name the guest's unit directories with guest: {units: […]}",
				"guest units not checked")
		}
		return c.problems
	}
	var requests []unit.Request
	for _, u := range units {
		requests = append(requests, u.Requests()...)
	}
	c.guest(requests)
	return c.problems
}

// item is where a delivered name comes from.
type item struct {
	field, host string
	pos         vm.Pos
}

type checker struct {
	spec      *vm.Spec
	delivered map[string]item // by the guest's name
	problems  vm.Problems
}

func (c *checker) add(sev vm.Severity, pos vm.Pos, field, hint, format string, args ...any) {
	c.problems = append(c.problems, vm.Problem{Severity: sev, Pos: pos, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// sources compares the names the file declares with those that are there.
func (c *checker) sources(present []string) {
	var declared []string
	for _, cred := range c.spec.Credentials {
		declared = append(declared, cred.Host)
	}
	undeclared := without(present, declared)
	matched := map[string]bool{}
	for _, cred := range c.spec.Credentials {
		if cred.Source.Kind != vm.SourceUnit || slices.Contains(present, cred.Host) {
			continue
		}
		hint := fmt.Sprintf("add LoadCredential=%s:/path/to/its/file to %s, or say here where it is: {file: PATH}", cred.Host, c.spec.Unit)
		if near := twin(cred.Host, undeclared); near != "" {
			hint = fmt.Sprintf("did you mean %s? (it is there, and not declared)", near)
			matched[near] = true
		}
		c.add(vm.Error, cred.Pos, "credentials."+cred.Host, hint, "no source has it")
	}
	for _, name := range undeclared {
		if matched[name] {
			continue
		}
		hint := fmt.Sprintf("add %s: {} under credentials:, or take it out of %s", name, c.spec.Unit)
		c.add(vm.Warning, vm.Pos{File: c.spec.File}, "credentials", hint, "%s is there, but not declared: the guest does not get it", name)
	}
}

// upperCase finds keys written as the guest has them. They work, as long as
// LoadCredential= on the host has the same name: mostly it does not.
func (c *checker) upperCase(present []string) {
	for _, cred := range c.spec.Credentials {
		if cred.Host == strings.ToLower(cred.Host) || slices.Contains(present, cred.Host) {
			continue
		}
		lower := strings.ReplaceAll(strings.ToLower(cred.Host), "_", "-")
		hint := fmt.Sprintf("did you mean %s? In the guest it is %s by itself", lower, credential.GuestName(lower))
		c.add(vm.Warning, cred.Pos, "credentials."+cred.Host, hint, "the key is the name on the host, which is lower case as a rule")
	}
}

func without(names, taken []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(taken, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// twin finds the name that was probably meant: the same but for case,
// separators and host-, or else one a few letters off.
func twin(name string, known []string) string {
	for _, k := range known {
		if same(name, k) {
			return k
		}
	}
	return vm.Nearest(name, known)
}

// same is true for two spellings of one name.
func same(a, b string) bool { return bare(a) == bare(b) }

// bare is a name without what people get wrong about it.
func bare(name string) string {
	name = strings.NewReplacer("_", "", "-", "", ".", "").Replace(strings.ToLower(name))
	return strings.TrimPrefix(name, "host")
}

// oemCredential splits an OEM string that is a credential written by hand.
func oemCredential(s string) (name, value string, ok bool) {
	for _, prefix := range []string{"io.systemd.credential:", "io.systemd.credential.binary:"} {
		if rest, is := strings.CutPrefix(s, prefix); is {
			name, value, _ = strings.Cut(rest, "=")
			return name, value, true
		}
	}
	return "", "", false
}
