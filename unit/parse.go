// SPDX-License-Identifier: Apache-2.0

// Package unit knows systemd's unit files: it reads which credentials a
// guest's units ask for, and writes the drop-in that brings a VM its
// credentials on the host. It handles names and paths, never a value.
package unit

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/vmcred/vmcred/vm"
)

// maxLine is systemd's LONG_LINE_MAX.
const maxLine = 1 << 20

// whitespace is what systemd strips around names and values (WHITESPACE).
const whitespace = " \t\n\r"

// Assignment is one "Key=Value" of a unit file, with continuation lines joined
// and specifiers (%i) as written.
type Assignment struct {
	Section, Key, Value string
	Pos                 vm.Pos
}

// Parse reads a unit file or a drop-in (systemd.syntax(7)). Lines that systemd
// itself would warn about and skip come back as warnings.
func Parse(path string, data []byte) ([]Assignment, vm.Problems) {
	p := parser{path: path}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		p.line++
		p.feed(string(line))
	}
	if len(p.joined) > 0 {
		p.statement(string(p.joined))
	}
	return p.out, p.problems
}

// cutLine ends a line where systemd's read_line() does: at LF, CR, CR LF or NUL.
func cutLine(data []byte) (line, rest []byte) {
	i := bytes.IndexAny(data, "\n\r\x00")
	switch {
	case i < 0:
		return data, nil
	case data[i] == '\r' && i+1 < len(data) && data[i+1] == '\n':
		return data[:i], data[i+2:]
	default:
		return data[:i], data[i+1:]
	}
}

type parser struct {
	path     string
	line     int // the line just read
	start    int // where the statement begins
	section  string
	ignored  bool   // in a section that has no proper header
	joined   []byte // the lines so far of a statement that goes on
	out      []Assignment
	problems vm.Problems
}

func (p *parser) feed(line string) {
	// A comment stands between continued lines without ending them.
	if t := strings.TrimLeft(line, whitespace); t != "" && strings.ContainsRune("#;", rune(t[0])) {
		return
	}
	if len(p.joined) == 0 {
		p.start = p.line
	}
	if len(p.joined)+len(line) > maxLine {
		p.warn("a line longer than 1 MiB")
		p.joined = p.joined[:0]
		return
	}
	if goesOn(line) {
		p.joined = append(append(p.joined, line[:len(line)-1]...), ' ')
		return
	}
	p.statement(string(p.joined) + line)
	p.joined = p.joined[:0]
}

// goesOn is true if the last character is a backslash that no other escapes.
func goesOn(s string) bool {
	n := len(s) - len(strings.TrimRight(s, `\`))
	return n%2 == 1
}

func (p *parser) warn(message string) {
	p.problems = append(p.problems, vm.Problem{
		Severity: vm.Warning, Pos: vm.Pos{File: p.path, Line: max(p.start, 1), Column: 1}, Message: message + "; systemd ignores it",
	})
}

func (p *parser) statement(s string) {
	s = strings.Trim(s, whitespace)
	switch {
	case s == "":
	case !utf8.ValidString(s):
		p.warn("this line is not UTF-8")
	case s[0] == '[':
		p.ignored = s[len(s)-1] != ']' || len(s) < 3
		if p.ignored {
			p.warn("this is no section header")
			return
		}
		p.section = s[1 : len(s)-1]
	default:
		key, value, ok := strings.Cut(s, "=")
		key = strings.Trim(key, whitespace)
		switch {
		case !ok || key == "":
			p.warn("this line has no key and =")
		case p.section == "" || p.ignored:
			p.warn("this assignment is outside of a section")
		default:
			p.out = append(p.out, Assignment{
				Section: p.section, Key: key, Value: strings.Trim(value, whitespace),
				Pos: vm.Pos{File: p.path, Line: p.start, Column: 1},
			})
		}
	}
}
