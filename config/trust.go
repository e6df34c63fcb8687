// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit, see path_resolution(7).
const maxLinks = 40

// readTrusted reads a regular file of at most limit bytes that nobody but root
// and the running user could have written: neither the file, nor a directory
// or link on its way. It follows links itself, from descriptor to descriptor,
// so that what was checked is what is read.
func readTrusted(abs string, limit int) ([]byte, error) {
	w := &walk{uid: uint32(os.Geteuid()), dir: -1, rest: split(abs), file: abs}
	defer w.close()
	if err := w.root(); err != nil {
		return nil, err
	}
	for len(w.rest) > 0 {
		f, err := w.step()
		if err != nil {
			return nil, err
		}
		if f != nil {
			defer f.Close()
			return readAtMost(f, limit)
		}
	}
	return nil, &FindError{Message: "this is a directory, not a file"}
}

func readAtMost(f *os.File, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read it: %w", errors.Unwrap(err))
	case len(data) > limit:
		return nil, tooLarge()
	}
	return data, nil
}

// walk stands in one directory and goes on name by name.
type walk struct {
	uid   uint32
	dir   int    // an O_PATH descriptor
	path  string // of dir, for messages
	file  string // what was asked for
	rest  []string
	links int
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (w *walk) close() {
	if w.dir >= 0 {
		_ = unix.Close(w.dir) // O_PATH: nothing to lose
		w.dir = -1
	}
}

func (w *walk) join(name string) string { return strings.TrimSuffix(w.path, "/") + "/" + name }

func (w *walk) root() error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.fail("", err)
	}
	return w.enter(fd, "/")
}

func (w *walk) enter(fd int, path string) error {
	w.close()
	w.dir, w.path = fd, path
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return w.fail("", err)
	}
	// In a sticky directory others can add names, but not replace ours; what
	// stands there is judged by its own owner and mode.
	return w.judge(path, &st, st.Mode&unix.S_ISVTX != 0)
}

// step follows one name; the file is nil until it is open.
func (w *walk) step() (*os.File, error) {
	name := w.rest[0]
	w.rest = w.rest[1:]
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(w.dir, name, flags, 0)
	if err != nil {
		return nil, w.fail(name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, w.fail(name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil, w.enter(fd, w.join(name))
	case unix.S_IFLNK:
		defer unix.Close(fd)
		return nil, w.follow(fd, name, &st)
	case unix.S_IFREG:
		defer unix.Close(fd)
		return w.open(fd, name, &st)
	}
	_ = unix.Close(fd)
	return nil, &FindError{Message: w.join(name) + " is not a regular file"}
}

func (w *walk) follow(fd int, name string, st *unix.Stat_t) error {
	if w.links++; w.links > maxLinks {
		return &FindError{Message: fmt.Sprintf("%s: more than %d links in a row", w.join(name), maxLinks), Tip: "do the links point at each other?"}
	}
	// A link's own mode says nothing, its owner does.
	if err := w.judge(w.join(name), st, true); err != nil {
		return err
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, "", buf[:])
	if err != nil {
		return w.fail(name, err)
	}
	target := string(buf[:n])
	if target == "" || strings.HasPrefix(w.path, "/proc/") {
		return &FindError{Message: w.join(name) + " is an open descriptor, not a file's path", Tip: "give the path of a regular file"}
	}
	w.rest = append(split(target), w.rest...)
	if target[0] == '/' {
		return w.root()
	}
	return nil
}

// open opens what fd stands for; it can no longer be another file.
func (w *walk) open(fd int, name string, st *unix.Stat_t) (*os.File, error) {
	if len(w.rest) > 0 {
		return nil, &FindError{Message: w.join(name) + " is a file, not a directory"}
	}
	if err := w.judge(w.join(name), st, false); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		var no unix.Errno
		if !errors.As(err, &no) {
			no = unix.EIO
		}
		return nil, w.fail(name, no)
	}
	return f, nil
}

// judge refuses what others can write. An owner who is neither root nor the
// running user could change it whatever its mode says now.
func (w *walk) judge(path string, st *unix.Stat_t, modeIsFine bool) error {
	what := path
	if path == w.file {
		what = "this file" // whose path stands before the message
	}
	if st.Uid != 0 && st.Uid != w.uid {
		return &FindError{
			Message: fmt.Sprintf("%s belongs to user %d, who could change it", what, st.Uid),
			Tip:     fmt.Sprintf("it must belong to root or to the user who runs this (%d)", w.uid),
		}
	}
	if !modeIsFine && st.Mode&0o022 != 0 {
		return &FindError{
			Message: fmt.Sprintf("%s can be written by others (mode %04o)", what, st.Mode&0o7777),
			Tip:     "chmod go-w " + path,
		}
	}
	return nil
}

func (w *walk) fail(name string, err error) error {
	path := w.path
	if name != "" {
		path = w.join(name)
	}
	tip := ""
	switch {
	case errors.Is(err, unix.ENOENT) && path == w.file:
		return &FindError{Message: "there is no such file", Tip: "check the path; without a / it would be a VM's name", cause: err}
	case errors.Is(err, unix.ENOENT):
		return &FindError{Message: path + " does not exist", cause: err}
	case errors.Is(err, unix.EACCES):
		tip = fmt.Sprintf("user %d must be able to read it; a VM's file holds no secret", w.uid)
	}
	return &FindError{Message: fmt.Sprintf("cannot open %s: %v", path, err), Tip: tip, cause: err}
}
