// SPDX-License-Identifier: Apache-2.0

// Package trusted opens files and directories that nobody but root and one user
// could have written or put there: neither the file itself, nor a directory or a
// link on its way.
package trusted

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit, see path_resolution(7).
const maxLinks = 40

// Error says what is wrong with which path: "/a/b can be written by others
// (mode 0664)".
type Error struct {
	Path string // absolute; of the file, or of what is on its way
	What string // what is wrong with it; empty: Err says it
	Err  error  // the system's error, if there is one
	Tip  string // what to do about it; may be empty

	Foreign bool // someone else could write it: that is what is wrong
}

// Error implements error.
func (e *Error) Error() string {
	if e.What == "" {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return e.Path + " " + e.What
}

// Hint says what to do about it, or is empty.
func (e *Error) Hint() string { return e.Tip }

// Unwrap returns the system's error: fs.ErrNotExist if the path does not exist.
func (e *Error) Unwrap() error { return e.Err }

// ErrNoName is a name that a directory does not hold.
var ErrNoName = errors.New("no such name")

// File opens a regular file for reading and returns its descriptor. It follows
// links itself, from descriptor to descriptor, so that what was checked is what
// is opened. path must be absolute; uid is the user to be trusted beside root.
// The error is an [*Error].
func File(path string, uid int) (int, error) {
	return open(path, &walker{uid: uid})
}

// Directory opens a directory in the same way.
func Directory(path string, uid int) (int, error) {
	return open(path, &walker{uid: uid, directory: true})
}

// Place opens a directory as [Directory] does, but the directory itself may be
// anybody's: nobody but root and that user can have its path lead to another one.
func Place(path string, uid int) (int, error) {
	return open(path, &walker{uid: uid, directory: true, place: true})
}

// FileIn is File for a name in a directory that [Directory] opened; path is the
// directory's. The error is [ErrNoName] if there is no such name, which is not
// that a link leads nowhere.
func FileIn(dir int, path, name string, uid int) (int, error) {
	w := &walker{uid: uid, dir: dir, path: path}
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, ErrNoName
	case err != nil:
		return -1, w.fail(name, err)
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return w.open(name)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return w.from(dir, name)
	}
	return -1, notRegular(w.join(name), st.Mode)
}

func open(path string, w *walker) (int, error) {
	if !strings.HasPrefix(path, "/") {
		return -1, &Error{Path: strconv.Quote(path), What: "is not an absolute path", Tip: "write it from the root: /run/secrets/name"}
	}
	if strings.IndexByte(path, 0) >= 0 {
		return -1, &Error{Path: path, What: "holds a NUL"}
	}
	w.dir, w.rest = -1, split(path)
	defer w.close()
	if err := w.toRoot(); err != nil {
		return -1, err
	}
	return w.walk()
}

// from follows a link that stands in dir, which stays open.
func (w *walker) from(dir int, name string) (int, error) {
	own, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, &Error{Path: w.path, Err: err}
	}
	w.dir, w.rest = own, []string{name}
	defer w.close()
	return w.walk()
}

// walk goes to the end of the path.
func (w *walker) walk() (int, error) {
	for len(w.rest) > 0 {
		fd, err := w.step()
		if fd >= 0 || err != nil {
			return fd, err
		}
	}
	if !w.directory {
		return -1, notRegular(w.path, unix.S_IFDIR)
	}
	fd, err := unix.Openat(w.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &Error{Path: w.path, Err: err}
	}
	return fd, nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
