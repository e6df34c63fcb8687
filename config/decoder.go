// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// decoder turns nodes into a Spec and gathers every problem on the way.
type decoder struct {
	file     string
	dir      string // relative paths in the file start here
	spec     *vm.Spec
	at       map[string]vm.Pos // where each field present in the file has its value
	said     map[string]bool   // fields that have a problem already
	accepts  map[string]fields // the keys each mapping may have, by field path
	problems vm.Problems
}

func newDecoder(file, dir string) *decoder {
	return &decoder{
		file: file, dir: dir, spec: &vm.Spec{File: file},
		at: map[string]vm.Pos{}, said: map[string]bool{}, accepts: map[string]fields{},
	}
}

// fields maps each key a mapping may have to what reads its value.
type fields map[string]func(path string, n *node)

// fail records an error about a field, once a field: what follows from a
// problem already named, there or above it, would only be noise.
func (d *decoder) fail(path, hint, format string, args ...any) {
	for p := path; p != ""; p = parent(p) {
		if d.said[p] {
			return
		}
	}
	d.said[path] = true
	d.problems = append(d.problems, vm.Problem{
		Pos: d.pos(path), Field: path, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (d *decoder) warn(path, hint, format string, args ...any) {
	d.problems = append(d.problems, vm.Problem{
		Severity: vm.Warning, Pos: d.pos(path), Field: path, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// pos is the place of a field, or of what holds it when it is not there.
func (d *decoder) pos(path string) vm.Pos {
	for ; path != ""; path = parent(path) {
		if p, ok := d.at[path]; ok {
			return p
		}
	}
	return vm.Pos{File: d.file}
}

// has says whether the file itself gives a field.
func (d *decoder) has(path string) bool {
	_, ok := d.at[path]
	return ok
}

// parent cuts the last step off a field path.
func parent(path string) string {
	quoted, cut := false, 0
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == '.' || c == '['):
			cut = i
		}
	}
	return path[:cut]
}

// object reads a mapping with a fixed set of keys.
func (d *decoder) object(path string, n *node, f fields) {
	d.accepts[path] = f
	d.pairs(path, n, func(sub string, p pair) {
		read, ok := f[p.key]
		if !ok {
			d.unknown(path, p, slices.Sorted(maps.Keys(f)))
			return
		}
		if p.value.kind == kindScalar && p.value.typ == typeNull {
			d.fail(sub, "give it a value, or leave the key out", "this key has no value")
			return
		}
		read(sub, p.value)
	})
}

// pairs walks a mapping and refuses a key that stands there twice.
func (d *decoder) pairs(path string, n *node, each func(sub string, p pair)) {
	if n.kind != kindMapping {
		d.fail(path, "", "this must be a mapping (key: value), not %s", n.what())
		return
	}
	first := map[string]vm.Pos{}
	for _, p := range n.pairs {
		if was, twice := first[p.key]; twice {
			d.problems = append(d.problems, vm.Problem{
				Pos: p.pos, Field: join(path, p.key), Message: fmt.Sprintf("this key is here twice, first in line %d", was.Line),
				Hint: "take one of them away",
			})
			continue
		}
		first[p.key] = p.pos
		sub := join(path, p.key)
		d.at[sub] = p.value.pos
		each(sub, p)
	}
}

func (d *decoder) unknown(path string, p pair, known []string) {
	sub := join(path, p.key)
	if d.said[sub] {
		return
	}
	prob := vm.Problem{Pos: p.pos, Field: sub, Message: "there is no such key"}
	if len(known) > 0 {
		prob.Hint = "the keys here are " + strings.Join(known, ", ")
	}
	if near := vm.Nearest(p.key, known); near != "" {
		prob.Hint = "did you mean " + near + "?"
		d.said[join(path, near)] = true // it is there, misspelt: not missing
	}
	if outer, inner, dotted := strings.Cut(p.key, "."); dotted && slices.Contains(known, outer) {
		prob.Hint = "write " + outer + ": {" + inner + ": …}"
	}
	delete(d.at, sub)
	d.said[sub] = true
	d.problems = append(d.problems, prob)
}

// list reads a sequence.
func (d *decoder) list(path string, n *node, each func(sub string, n *node)) {
	if n.kind != kindSequence {
		d.fail(path, "put [ ] around it, or a - before each entry", "this must be a list, not %s", n.what())
		return
	}
	for i, c := range n.items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.at[sub] = c.pos
		each(sub, c)
	}
}

// str reads a string into to.
func (d *decoder) str(to *string) func(string, *node) {
	return func(path string, n *node) {
		switch {
		case n.kind != kindScalar || n.typ == typeNull:
			d.fail(path, "", "this must be a string, not %s", n.what())
		case n.typ != typeString:
			d.fail(path, "put it in quotes", "this must be a string, not %s", n.what())
		default:
			*to = n.text
		}
	}
}

// path reads a file's path; a relative one starts at the VM's file.
func (d *decoder) path(to *string) func(string, *node) {
	return func(path string, n *node) {
		var s string
		d.str(&s)(path, n)
		if n.kind == kindScalar && n.typ == typeString {
			*to = d.resolve(path, s)
		}
	}
}

// folder is path for a directory, whose "/" at the end says nothing more.
func (d *decoder) folder(to *string) func(string, *node) {
	return func(path string, n *node) {
		var s string
		d.str(&s)(path, n)
		if n.kind != kindScalar || n.typ != typeString {
			return
		}
		if short := strings.TrimRight(s, "/"); short != "" {
			s = short
		} else if s != "" {
			*to = "/"
			return
		}
		*to = d.resolve(path, s)
	}
}

// integer reads a whole number in decimal.
func (d *decoder) integer(lo, hi int64, set func(int64)) func(string, *node) {
	return func(path string, n *node) {
		if n.kind != kindScalar || n.typ != typeInt {
			hint := ""
			if n.kind == kindScalar && n.typ == typeString && isDigits(n.text) {
				hint = "take the quotes away"
			}
			d.fail(path, hint, "this must be a whole number, not %s", n.what())
			return
		}
		v, err := strconv.ParseInt(n.text, 10, 64)
		if !isDigits(strings.TrimPrefix(n.text, "-")) || err != nil || (len(n.text) > 1 && n.text[0] == '0') {
			d.fail(path, "write it in plain decimal digits", "this is not a whole number that can be used here")
			return
		}
		if v < lo || v > hi {
			d.fail(path, "", "%d is out of range: it must be %d to %d", v, lo, hi)
			return
		}
		set(v)
	}
}

// boolean reads true or false, and not the other words YAML once knew.
func (d *decoder) boolean(to *bool) func(string, *node) {
	return func(path string, n *node) {
		if n.kind != kindScalar || (n.text != "true" && n.text != "false") || n.typ != typeBool {
			d.fail(path, "write true or false, without quotes", "this must be true or false")
			return
		}
		*to = n.text == "true"
	}
}

// word reads one of a few words.
func word[T ~string](d *decoder, to *T, known ...T) func(string, *node) {
	return func(path string, n *node) {
		var s string
		d.str(&s)(path, n)
		if d.said[path] {
			return
		}
		if !slices.Contains(known, T(s)) {
			d.fail(path, oneOf(s, known), "%q is not known here", s)
			return
		}
		*to = T(s)
	}
}

// oneOf is the hint for a word that is none of known.
func oneOf[T ~string](s string, known []T) string {
	words := make([]string, len(known))
	for i, k := range known {
		words[i] = string(k)
	}
	if near := vm.Nearest(s, words); near != "" {
		return "did you mean " + near + "?"
	}
	return "it can be " + strings.Join(words, ", ")
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// sorted puts problems in the order of the file.
func sorted(ps vm.Problems) vm.Problems {
	slices.SortStableFunc(ps, func(a, b vm.Problem) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
	})
	return ps
}
