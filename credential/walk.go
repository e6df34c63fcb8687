// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

type want int

const (
	wantFile want = iota
	wantDirectory
)

// maxLinks is the kernel's own limit, see path_resolution(7).
const maxLinks = 40

// trustError is a file or directory that someone else could have written, or
// that is not what it should be.
type trustError struct{ msg, hint string }

func (e *trustError) Error() string { return e.msg }

// walker follows a path name by name, so that what was checked is what is
// opened: it holds the directory it stands in and never looks up a path twice.
type walker struct {
	uid   int
	want  want
	dir   int    // O_PATH descriptor
	path  string // of dir, for messages
	rest  []string
	links int
}

// openTrusted opens a regular file for reading, or a directory. It follows links
// itself and refuses what others than root and uid can write: the file, every
// directory on its way, and what they could have put into a sticky directory.
func openTrusted(path string, uid int, w want) (int, error) {
	if !strings.HasPrefix(path, "/") {
		return -1, &trustError{"the path is not absolute", "write it from the root: /run/secrets/name"}
	}
	if strings.IndexByte(path, 0) >= 0 {
		return -1, &trustError{"the path holds a NUL", ""}
	}
	walk := &walker{uid: uid, want: w, dir: -1, rest: split(path)}
	defer walk.close()
	if err := walk.toRoot(); err != nil {
		return -1, err
	}
	for len(walk.rest) > 0 {
		fd, err := walk.step()
		if fd >= 0 || err != nil {
			return fd, err
		}
	}
	if w != wantDirectory {
		return -1, notRegular(walk.path, unix.S_IFDIR)
	}
	return unix.Openat(walk.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// errNoName is a name that a directory does not hold.
var errNoName = errors.New("no such name")

// openTrustedIn opens a regular file, or what a link leads to, in a directory
// that [openTrusted] opened; path is its path. The error is errNoName if there
// is none.
func openTrustedIn(dir int, path, name string, uid int) (int, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	walk := &walker{uid: uid, want: wantFile, dir: dir, path: path}
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, errNoName
	case err != nil:
		return -1, walk.fail(name, err)
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return walk.open(name)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return openTrusted(walk.join(name), uid, wantFile)
	}
	return -1, notRegular(walk.join(name), st.Mode)
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (w *walker) close() {
	if w.dir >= 0 {
		_ = unix.Close(w.dir) // O_PATH: nothing to lose
		w.dir = -1
	}
}

func (w *walker) toRoot() error {
	w.close()
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	w.dir, w.path = fd, "/"
	return w.checkDir()
}

// step follows one name. The descriptor is -1 until the file is open.
func (w *walker) step() (int, error) {
	name := w.rest[0]
	w.rest = w.rest[1:]
	if name == "." {
		return -1, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(w.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, w.fail(name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return -1, w.follow(name, &st)
	case unix.S_IFDIR:
		return -1, w.enter(name)
	case unix.S_IFREG:
		if len(w.rest) > 0 || w.want == wantDirectory {
			return -1, w.fail(name, unix.ENOTDIR)
		}
		return w.open(name)
	}
	return -1, notRegular(w.join(name), st.Mode)
}

func (w *walker) join(name string) string { return strings.TrimSuffix(w.path, "/") + "/" + name }

// fail says what is wrong; the caller has named the path that was asked for.
func (w *walker) fail(name string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s does not exist%w", w.join(name), hidden{err})
	}
	return fmt.Errorf("%s: %w", w.join(name), err)
}

// hidden is a cause that the message has in better words.
type hidden struct{ error }

func (hidden) Error() string   { return "" }
func (h hidden) Unwrap() error { return h.error }

func (w *walker) enter(name string) error {
	fd, err := unix.Openat(w.dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.fail(name, err)
	}
	path := w.join(name)
	w.close()
	w.dir, w.path = fd, path
	return w.checkDir()
}

func (w *walker) checkDir() error {
	var st unix.Stat_t
	if err := unix.Fstat(w.dir, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: w.path, Err: err}
	}
	return w.check(w.path, &st, st.Mode&unix.S_ISVTX != 0)
}

// check refuses what others can write. In a sticky directory they can add names,
// but not replace ours: what stands there is checked by its own owner.
func (w *walker) check(path string, st *unix.Stat_t, sticky bool) error {
	if st.Uid != 0 && int(st.Uid) != w.uid {
		return &trustError{
			fmt.Sprintf("%s belongs to user %d, who could change it", path, st.Uid),
			fmt.Sprintf("it must belong to root or to user %d: chown it, or keep the secret elsewhere", w.uid),
		}
	}
	if st.Mode&0o022 != 0 && !sticky {
		return &trustError{
			fmt.Sprintf("%s can be written by others (mode %04o)", path, st.Mode&0o7777),
			"chmod go-w " + path,
		}
	}
	return nil
}

func (w *walker) follow(name string, st *unix.Stat_t) error {
	if w.links++; w.links > maxLinks {
		return w.fail(name, unix.ELOOP)
	}
	if st.Uid != 0 && int(st.Uid) != w.uid {
		return w.check(w.join(name), st, true)
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(w.dir, name, buf[:])
	if err != nil {
		return w.fail(name, err)
	}
	target := string(buf[:n])
	if !strings.HasPrefix(target, "/") && strings.Contains(target, ":[") {
		return &trustError{
			fmt.Sprintf("%s is an open descriptor (%s), not a regular file", w.join(name), target),
			"give the path of a file; `<(…)` of a shell is a pipe",
		}
	}
	w.rest = append(split(target), w.rest...)
	if strings.HasPrefix(target, "/") {
		return w.toRoot()
	}
	return nil
}

// open opens the file that was just seen, and checks what it has opened: it may
// have been replaced. O_NONBLOCK keeps a pipe from hanging us.
func (w *walker) open(name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(w.dir, name, flags, 0)
	if err != nil {
		return -1, w.fail(name, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = notRegular(w.join(name), st.Mode)
	}
	if err == nil {
		err = w.check(w.join(name), &st, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func notRegular(path string, mode uint32) error {
	what := "a special file"
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		what = "a directory"
	case unix.S_IFIFO:
		what = "a pipe"
	case unix.S_IFSOCK:
		what = "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		what = "a device"
	}
	hint := "give the path of a regular file"
	if what == "a socket" {
		hint = "LoadCredential= in the VM's unit can read a socket"
	}
	return &trustError{path + " is " + what + ", not a regular file", hint}
}
