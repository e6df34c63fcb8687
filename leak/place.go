// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Kind is where a value was found.
type Kind string

// The kinds of places. Those of Strace begin with "exec", "write" or "name".
const (
	Argv        Kind = "argv"         // /proc/PID/cmdline
	Environ     Kind = "environ"      // /proc/PID/environ
	Comm        Kind = "comm"         // a process's or thread's name
	File        Kind = "file"         // a file's content
	FileName    Kind = "file name"    // a name in a directory
	Symlink     Kind = "symlink"      // a symbolic link's target
	Xattr       Kind = "xattr"        // an extended attribute
	Descriptor  Kind = "descriptor"   // a memfd, or a deleted file that is still open
	Journal     Kind = "journal"      // what journalctl exports
	KernelLog   Kind = "kernel log"   // /dev/kmsg
	Memory      Kind = "memory"       // a process's memory
	ExecArgv    Kind = "exec argv"    // an argument of execve(2)
	ExecEnviron Kind = "exec environ" // a variable given to execve(2)
	Write       Kind = "write"        // bytes written or sent to a descriptor
	Name        Kind = "name"         // a path or name given to another system call
)

// Target is what a traced process wrote to.
type Target string

// The kinds of targets.
const (
	ToFile    Target = "file"
	ToMemfd   Target = "memfd"
	ToPipe    Target = "pipe"
	ToSocket  Target = "socket"
	ToDevice  Target = "device" // a terminal, /dev/null, …
	ToOther   Target = "other"  // eventfd and the like
	ToUnknown Target = "unknown"
)

// Place is where something was found. Values in its texts are replaced by
// their needles' names.
type Place struct {
	Kind    Kind   `json:"kind"`
	PID     int    `json:"pid,omitempty"` // a thread's id for Strace and Comm
	Exe     string `json:"exe,omitempty"`
	Path    string `json:"path,omitempty"`    // the file, or the target of a write
	Target  Target `json:"target,omitempty"`  // Write only
	Syscall string `json:"syscall,omitempty"` // Strace only
	Detail  string `json:"detail,omitempty"`  // "argument 4", "variable TOKEN", a mapping's name
}

// String returns the place in one line.
func (p Place) String() string {
	var b strings.Builder
	b.WriteString(string(p.Kind))
	if p.PID != 0 {
		fmt.Fprintf(&b, " of process %d", p.PID)
		if p.Exe != "" {
			fmt.Fprintf(&b, " (%s)", p.Exe)
		}
	}
	if p.Target != "" {
		fmt.Fprintf(&b, " to %s", p.Target)
	}
	if p.Path != "" {
		b.WriteString(" " + p.Path)
	}
	if p.Syscall != "" {
		fmt.Fprintf(&b, " by %s", p.Syscall)
	}
	if p.Detail != "" {
		b.WriteString(", " + p.Detail)
	}
	return b.String()
}

// Meant is one kind of place that is meant to hold the values.
type Meant struct {
	Name string // for the report: "credentials directory"
	Is   func(Place) bool
}

// Under means the files and names below dir, an absolute path.
func Under(name, dir string) Meant {
	dir = filepath.Clean(dir)
	return Meant{Name: name, Is: func(p Place) bool {
		switch p.Kind {
		case File, FileName, Symlink, Xattr, Write, Name:
			return p.Path == dir || strings.HasPrefix(p.Path, strings.TrimSuffix(dir, "/")+"/")
		}
		return false
	}}
}

// Memfds means memfds whose name begins with prefix, found as an open
// descriptor or written to by a traced process.
func Memfds(name, prefix string) Meant {
	return Meant{Name: name, Is: func(p Place) bool {
		return (p.Kind == Descriptor || p.Target == ToMemfd) && strings.HasPrefix(p.Path, "/memfd:"+prefix)
	}}
}
