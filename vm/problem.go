// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"strings"
)

// Severity says whether a problem keeps a VM from starting.
type Severity int

// The severities of a Problem.
const (
	Error   Severity = iota // the VM does not start
	Warning                 // it starts, and probably not as meant
	Note                    // something that could not be checked
)

// String returns "error", "warning" or "note".
func (s Severity) String() string {
	switch s {
	case Warning:
		return "warning"
	case Note:
		return "note"
	default:
		return "error"
	}
}

// Problem is one thing that is wrong with a VM, in words for people.
// It never holds a secret's value.
type Problem struct {
	Severity Severity `json:"-"`
	Pos      Pos      `json:"pos"`
	Field    string   `json:"field,omitempty"` // as in the VM's file: "credentials.host-api-key.file"
	Message  string   `json:"message"`
	Hint     string   `json:"hint,omitempty"` // what to do about it
}

// Error returns the problem as "file:line:column: field: message", without its hint.
func (p Problem) Error() string {
	var b strings.Builder
	if p.Pos.File != "" {
		b.WriteString(p.Pos.File)
		if p.Pos.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Pos.Line, p.Pos.Column)
		}
		b.WriteString(": ")
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is every problem found, as one error.
type Problems []Problem

// Error returns all messages, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Fatal returns the problems that keep a VM from starting.
func (ps Problems) Fatal() Problems {
	var out Problems
	for _, p := range ps {
		if p.Severity == Error {
			out = append(out, p)
		}
	}
	return out
}
