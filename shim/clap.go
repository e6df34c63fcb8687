// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"maps"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// arity is how many arguments a flag of cloud-hypervisor has.
type arity int

const (
	none     arity = iota // and it comes once
	one                   // and it comes once
	optional              // one or none, and it comes once
	many                  // one or more, and it comes as often as one likes
)

// rule is what a flag means.
type rule struct {
	arity   arity
	refused string // why it is; empty: it is not
	do      func(*parser, flag)
}

// flags splits an argument vector as clap does for cloud-hypervisor: a flag, its
// arguments behind it or after a "=". What is wrong with that is reported.
func (p *parser) flags(argv []string, rules map[string]rule) []flag {
	var out []flag
	seen := map[string]bool{}
	for i := 1; i < len(argv); {
		name, value, attached := strings.Cut(argv[i], "=")
		f := flag{word: word{i, name}}
		if !strings.HasPrefix(name, "-") {
			p.fault(word{i, argv[i]}, flag{word: word{i, argv[i]}}, "a word that belongs to no flag", "")
			i++
			continue
		}
		r, ok := rules[name]
		if strings.HasPrefix(name, "-v") && strings.Trim(name, "-v") == "" {
			r, ok = rules["-v"], true
		}
		if !ok {
			p.unknown(f, rules)
		}
		i++
		if attached {
			f.args = append(f.args, word{f.index, value})
		}
		for !attached && i < len(argv) && !isFlag(argv[i]) && (!ok || r.arity == many || r.arity != none && len(f.args) == 0) {
			f.args = append(f.args, word{i, argv[i]})
			i++
		}
		if !ok {
			continue
		}
		if f.rule = r; p.counted(f, r, seen[name]) {
			out = append(out, f)
		}
		seen[name] = true
	}
	return out
}

// isFlag tells a flag from an argument: a lone - is none.
func isFlag(s string) bool { return len(s) > 1 && s[0] == '-' }

// counted reports a flag that has too many or too few arguments, or came before.
func (p *parser) counted(f flag, r rule, again bool) bool {
	switch {
	case r.refused != "": // its arguments do not matter
	case r.arity == none && len(f.args) > 0:
		p.fault(f.word, f, "it takes no argument", "")
		return false
	case r.arity != none && r.arity != optional && len(f.args) == 0:
		p.fault(f.word, f, "its argument is missing", "")
		return false
	case again && r.arity != many:
		p.fault(f.word, f, "it is there twice", "")
		return false
	}
	return true
}

func (p *parser) unknown(f flag, rules map[string]rule) {
	var named []string
	for name, r := range rules {
		if r.refused == "" {
			named = append(named, name)
		}
	}
	hint := ""
	if near := vm.Nearest(f.text, named); near != "" {
		hint = "did you mean " + near + "?"
	} else if near := vm.Nearest(f.text, slices.Collect(maps.Keys(rules))); near != "" {
		hint = "did you mean " + near + "? that is refused, too"
	}
	p.fault(f.word, f, "cloud-hypervisor has no such flag", hint)
}
