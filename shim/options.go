// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// splitCommas splits as cloud-hypervisor's option_parser does: at commas that are
// neither within quotes nor within brackets. The quotes stay.
func splitCommas(s string) ([]string, error) {
	var list []string
	depth, quoted := 0, false
	var current strings.Builder
	for _, c := range strings.TrimSpace(s) {
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[':
			depth++
		case c == ']':
			if depth--; depth < 0 {
				return nil, errors.New("there is a ] without a [")
			}
		case c == ',' && depth == 0:
			list = append(list, current.String())
			current.Reset()
			continue
		}
		current.WriteRune(c)
	}
	switch {
	case quoted:
		return nil, errors.New(`there is a " without another`)
	case depth > 0:
		return nil, errors.New("there is a [ without a ]")
	}
	return append(list, current.String()), nil
}

// dequote takes quotes away; two within quotes are one.
func dequote(s string) string {
	var out strings.Builder
	quoted, before := false, rune(0)
	for _, c := range s {
		if c == '"' {
			if before == '"' && !quoted {
				out.WriteByte('"')
			}
			quoted = !quoted
		} else {
			out.WriteRune(c)
		}
		before = c
	}
	return out.String()
}

// keys are what a flag may say: a key, and why it is refused, or nothing.
type keys map[string]string

// but adds keys that are refused for one reason.
func (k keys) but(reason string, names ...string) keys {
	all := maps.Clone(k)
	for _, n := range names {
		all[n] = reason
	}
	return all
}

func known(names ...string) keys { return keys{}.but("", names...) }

// options is one argument of the form key=value,key=value. A value that is empty is
// as one that is not there.
type options struct {
	p      *parser
	f      flag
	w      word
	values map[string]string
}

// options reads an argument. bare are keys that have no value.
func (p *parser) options(f flag, w word, k keys, bare ...string) *options {
	o := &options{p: p, f: f, w: w, values: map[string]string{}}
	if strings.TrimSpace(w.text) == "" {
		return o
	}
	list, err := splitCommas(w.text)
	if err != nil {
		o.fault("", err.Error(), "")
	}
	for i, item := range list {
		key, value, has := strings.Cut(item, "=")
		reason, ok := k[key]
		switch {
		case slices.Contains(bare, key):
			o.values[key] = key
		case !ok:
			o.unknown(i, key, slices.Collect(maps.Keys(k)))
		case reason != "":
			o.fault(key, "is refused: "+reason, "")
		case !has:
			o.fault(key, "has no value", "")
		default:
			o.values[key] = strings.TrimSpace(value)
		}
	}
	return o
}

// unknown refuses a key. In --platform it may be a piece of a string with a comma.
func (o *options) unknown(i int, key string, all []string) {
	near := vm.Nearest(key, all)
	switch {
	case near != "":
		o.fault("", quote(key)+" is no key of "+o.f.text, "did you mean "+near+"=?")
	case o.f.text == platformFlag:
		o.fault("", fmt.Sprintf("part %d of what the commas divide is no key of %s", i+1, o.f.text), "a string with a comma in it stands in quotes")
	default:
		o.fault("", quote(key)+" is no key of "+o.f.text, "")
	}
}

func (o *options) fault(key, message, hint string) {
	if key != "" {
		message = key + "= " + message
	}
	o.p.fault(o.w, o.f, message, hint)
}

// wrong refuses a value, and shows it.
func (o *options) wrong(key, want string) {
	o.fault(key, quote(o.values[key])+" is not "+want, "")
}

func (o *options) has(key string) bool { return o.values[key] != "" }

func (o *options) text(key string) string { return dequote(o.values[key]) }

// need is text that must be there.
func (o *options) need(key string) string {
	if !o.has(key) {
		o.fault(key, "is missing", "")
	}
	return o.text(key)
}

// path is need for a file, absolute.
func (o *options) path(key string) string { return o.p.abs(o.need(key)) }

// toggle is off without a value, unless it is on by default.
func (o *options) toggle(key string, byDefault bool) bool {
	if !o.has(key) {
		return byDefault
	}
	switch strings.ToLower(o.values[key]) {
	case "on", "true":
		return true
	case "off", "false":
		return false
	}
	o.wrong(key, "on, off, true or false")
	return byDefault
}

// number is an integer of 0 to most.
func (o *options) number(key string, byDefault, most uint64) uint64 {
	if !o.has(key) {
		return byDefault
	}
	n, err := parseUint(o.text(key))
	if err != nil || n > most {
		o.wrong(key, "a number of 0 to "+strconv.FormatUint(most, 10))
		return byDefault
	}
	return n
}

// size is a number of bytes: K, M and G are 1024 and its powers.
func (o *options) size(key string, byDefault uint64) uint64 {
	if !o.has(key) {
		return byDefault
	}
	n, ok := parseSize(o.text(key))
	if !ok {
		o.wrong(key, "a size: a number, then K, M, G or nothing")
		return byDefault
	}
	return n
}

// parseSize reads a size that vm.Spec has room for.
func parseSize(s string) (uint64, bool) {
	s = strings.TrimSpace(s)
	shift := 0
	switch {
	case strings.HasSuffix(s, "K"):
		shift = 10
	case strings.HasSuffix(s, "M"):
		shift = 20
	case strings.HasSuffix(s, "G"):
		shift = 30
	}
	n, err := parseUint(strings.TrimRight(s, "KMG"))
	return n << shift, err == nil && n <= math.MaxInt64>>shift
}

// parseUint reads digits, and the one + that Rust takes before them.
func parseUint(s string) (uint64, error) {
	return strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 64)
}

// listMax is how many numbers a list may name.
const listMax = 256

// list is numbers in brackets, with ranges: [3,5-7].
func (o *options) list(key string) []int {
	if !o.has(key) {
		return nil
	}
	var out []int
	for item := range strings.SplitSeq(strings.Trim(o.values[key], "[]"), ",") {
		from, to, isRange := strings.Cut(item, "-")
		a, err := parseUint(from)
		b := a
		if err == nil && isRange {
			b, err = parseUint(to)
		}
		if err != nil || isRange && a >= b || b > math.MaxInt32 || b-a >= listMax || len(out) >= listMax {
			o.wrong(key, "a list of numbers, as [3,4]")
			return nil
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	return out
}

// choice is one of some words, and what cloud-hypervisor's configuration calls it.
func (o *options) choice(key string, of map[string]string) (string, bool) {
	if !o.has(key) {
		return "", false
	}
	v, ok := of[strings.ToLower(o.text(key))]
	if !ok {
		o.wrong(key, "one of "+strings.Join(slices.Sorted(maps.Keys(of)), ", "))
	}
	return v, ok
}
