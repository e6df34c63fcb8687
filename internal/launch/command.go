// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstDonated is the number of the first donated descriptor in the child.
const firstDonated = 3

// Command is a process to be started. The zero value of a field means: nothing.
type Command struct {
	Path                  string    // the program, absolute
	Args                  []string  // its arguments after the program's name
	Env                   []string  // its whole environment, "NAME=value"
	Dir                   string    // its working directory; empty: "/"
	Stdin, Stdout, Stderr *os.File  // nil: /dev/null
	Identity              *Identity // nil: our own user

	// ReadOnly is a directory that it can read and not write, with all that is
	// mounted below it: a mount namespace of its own has it so before the user is
	// changed. Absolute, without links; only root can have one. Kernels before 5.12
	// show it without what is mounted below.
	ReadOnly string
	// Mounts is for a program that makes mounts of its own: a Landlock domain of
	// kernels before 6.12 would refuse them, so it enters none there.
	Mounts bool

	donated     []donation
	oldReadOnly *readOnly // for a test: as a kernel before 5.12 has it
}

type donation struct {
	name string
	file *os.File
}

// Donate gives f to the process and returns its number there, 3 for the first.
// The name is for error texts. f stays ours: close it when Start has returned.
func (c *Command) Donate(name string, f *os.File) int {
	c.donated = append(c.donated, donation{name, f})
	return firstDonated + len(c.donated) - 1
}

// StartError says which program could not be started, and why.
type StartError struct {
	Path string
	Err  error
	hint string
}

// Error implements error.
func (e *StartError) Error() string { return fmt.Sprintf("starting %s: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// Hint says what to do about it; it may be empty.
func (e *StartError) Hint() string { return e.hint }

func (c *Command) check() error {
	if !filepath.IsAbs(c.Path) {
		return errors.New("its path is not absolute")
	}
	for _, s := range slices.Concat([]string{c.Path, c.Dir}, c.Args, c.Env) {
		if strings.ContainsRune(s, 0) {
			return errors.New("an argument or variable holds a NUL byte")
		}
	}
	for i, d := range c.donated {
		if d.file == nil {
			return fmt.Errorf("descriptor %d (%s) is not open", firstDonated+i, d.name)
		}
	}
	if c.ReadOnly != "" && (!filepath.IsAbs(c.ReadOnly) || strings.ContainsRune(c.ReadOnly, 0)) {
		return errors.New("the directory it may only read is no absolute path")
	}
	if c.Identity == nil {
		return nil
	}
	return c.Identity.check()
}

// changeTo returns the user to become; nil when we are that already.
func (c *Command) changeTo() *Identity {
	id := c.Identity
	if id == nil {
		return nil
	}
	uid, gid := int(id.UID), int(id.GID)
	if os.Getuid() == uid && os.Geteuid() == uid && os.Getgid() == gid && os.Getegid() == gid {
		return nil
	}
	return id
}

// explain says what the child was doing when it failed, and why.
func (c *Command) explain(at step, errno syscall.Errno) *StartError {
	e := &StartError{Path: c.Path, Err: errno}
	wrap := func(what string) { e.Err = fmt.Errorf("%s: %w", what, errno) }
	switch at {
	case stepNone:
		wrap("making a process")
		e.hint = "see the limit on processes: TasksMax= of the unit and `ulimit -u`"
	case stepGroups, stepGID, stepUID:
		wrap("becoming " + c.who())
		if errno == unix.EPERM {
			e.hint = "only root may start a process as another user"
		}
	case stepNamespace, stepReadOnly:
		wrap(fmt.Sprintf(stepNames[at], c.ReadOnly))
		if errno == unix.EPERM {
			e.hint = "only root may have a directory that a process can only read"
		}
	case stepKeyring:
		wrap(stepNames[at])
		if errno == unix.EDQUOT {
			e.hint = c.who() + " has as many keys as it may (/proc/key-users): see kernel.keys.maxkeys and kernel.keys.maxbytes"
		}
	case stepDirectory:
		wrap("entering its directory " + c.dir())
		if errno == unix.EACCES {
			e.hint = c.who() + " must be able to enter it"
		}
	case stepExec:
		c.explainExec(e, errno)
	default:
		wrap(stepNames[at])
	}
	return e
}

var stepNames = map[step]string{
	stepSession:      "making a session",
	stepNamespace:    "making a mount namespace where %s is read-only",
	stepReadOnly:     "making %s read-only for it",
	stepCapabilities: "clearing its capabilities",
	stepCore:         "limiting its core dumps",
	stepKeyring:      "making a keyring of its own",
	stepPrivileges:   "setting no_new_privs",
	stepLandlock:     "entering a landlock domain",
	stepDescriptors:  "placing its descriptors",
	stepParent:       "setting the parent-death signal",
}

func (c *Command) explainExec(e *StartError, errno syscall.Errno) {
	_, err := os.Stat(c.Path)
	switch {
	case errno == unix.ENOENT && err == nil:
		e.Err = fmt.Errorf("its interpreter or loader is missing: %w", errno)
	case errno == unix.EACCES:
		e.hint = c.who() + " must be able to execute it, and to enter every directory on the way"
	case errno == unix.ENOEXEC:
		e.hint = "it is not a program for this machine"
	}
}

func (c *Command) who() string {
	switch {
	case c.Identity == nil:
		return "this user"
	case c.Identity.User == "":
		return fmt.Sprintf("uid %d", c.Identity.UID)
	default:
		return "user " + c.Identity.User
	}
}

func (c *Command) dir() string {
	if c.Dir == "" {
		return "/"
	}
	return c.Dir
}
