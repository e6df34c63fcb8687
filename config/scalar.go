// SPDX-License-Identifier: Apache-2.0

package config

import (
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// sizeUnits are the units of a size: powers of 1024, named so.
func sizeUnits() map[string]int64 {
	return map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
}

// pattern is compiled at its first use: most starts use none.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// looseSize is what people also write; it is refused, with the unit it
// probably stands for, as "1G" is 10⁹ to one program and 2³⁰ to another.
var looseSize = pattern(`(?i)^\s*([0-9]+)\s*([kmgt])(i?b?|bytes)?\s*$`)

const sizeHint = "write a whole number and a unit: 512MiB, 2GiB"

// size reads "1GiB", "512MiB" or a plain number of bytes.
func (d *decoder) size(to *int64) func(string, *node) {
	return func(path string, n *node) {
		if n.kind != kindScalar || (n.typ != typeString && n.typ != typeInt) {
			d.fail(path, sizeHint, "this must be a size, not %s", n.what())
			return
		}
		number := strings.TrimRight(n.text, "BKMGTi")
		unit, known := sizeUnits()[n.text[len(number):]]
		if !isDigits(number) || !known {
			hint := sizeHint
			if l := looseSize().FindStringSubmatch(n.text); l != nil {
				hint = "did you mean " + l[1] + strings.ToUpper(l[2]) + "iB?"
			}
			d.fail(path, hint, "%q is not a size", n.text)
			return
		}
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil || v > math.MaxInt64/unit {
			d.fail(path, "", "%q is more than any machine has", n.text)
			return
		}
		*to = v * unit
	}
}

const durationHint = "write a number and a unit: 15s, 2m, 1m30s"

// duration reads "15s", as Go writes durations.
func (d *decoder) duration(to *time.Duration) func(string, *node) {
	return func(path string, n *node) {
		if n.kind != kindScalar || n.typ == typeBool || n.typ == typeNull {
			d.fail(path, durationHint, "this must be a duration, not %s", n.what())
			return
		}
		v, err := time.ParseDuration(n.text)
		if err != nil || (n.typ != typeString && n.text != "0") {
			hint := durationHint
			if isDigits(n.text) {
				hint = "did you mean " + n.text + "s?"
			}
			d.fail(path, hint, "%q is not a duration", n.text)
			return
		}
		*to = v
	}
}

// resolve makes a path absolute and clean: relative to the directory of the
// VM's file, never to where vmcred happens to be started.
func (d *decoder) resolve(path, s string) string {
	switch {
	case s == "":
		d.fail(path, "", "this path is empty")
		return ""
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl):
		d.fail(path, "", "a path must be UTF-8 without control characters")
		return ""
	case s == "~" || strings.HasPrefix(s, "~/"):
		d.fail(path, "write the whole path", "~ is not a directory here")
		return ""
	case strings.HasSuffix(s, "/"):
		d.fail(path, "name the file, not a directory", "this path ends in /")
		return ""
	case len(s) > 4095:
		d.fail(path, "", "this path is longer than 4095 bytes")
		return ""
	}
	if !filepath.IsAbs(s) {
		s = filepath.Join(d.dir, s)
	}
	return filepath.Clean(s)
}
