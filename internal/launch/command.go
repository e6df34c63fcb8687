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

	donated []donation
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
	if c.Identity == nil {
		return nil
	}
	return c.Identity.check()
}

// credential returns what to change in the child; nil when it is that user already.
func (c *Command) credential() *syscall.Credential {
	id := c.Identity
	if id == nil {
		return nil
	}
	euid := uint32(os.Geteuid())
	if euid != 0 && id.UID == euid && id.GID == uint32(os.Getegid()) {
		return nil
	}
	return &syscall.Credential{Uid: id.UID, Gid: id.GID, Groups: id.Groups}
}

// explain turns an errno of fork and exec into words. The kernel does not say
// which step failed, so the causes are looked at one by one.
func (c *Command) explain(err error) *StartError {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return &StartError{Path: c.Path, Err: err}
	}
	e := &StartError{Path: c.Path, Err: errno}
	if info, serr := os.Stat(c.dir()); serr != nil || !info.IsDir() {
		e.Err = fmt.Errorf("its working directory %s: %w", c.dir(), errno)
		return e
	}
	switch errno {
	case unix.ENOENT:
		if _, serr := os.Stat(c.Path); serr == nil {
			e.Err = fmt.Errorf("its interpreter or loader is missing: %w", errno)
		}
	case unix.EACCES:
		e.hint = fmt.Sprintf("%s must be able to execute it, and to enter %s", c.who(), c.dir())
	case unix.EPERM:
		if os.Geteuid() != 0 && c.credential() != nil {
			e.Err = fmt.Errorf("only root may start a process as %s: %w", c.who(), errno)
		}
	case unix.EAGAIN:
		e.hint = "the limit on processes is reached: see TasksMax= of the unit and `ulimit -u`"
	}
	return e
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
