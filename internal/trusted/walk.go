// SPDX-License-Identifier: Apache-2.0

package trusted

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// walker follows a path name by name: it holds the directory it stands in and
// never looks up a path twice.
type walker struct {
	uid       int
	directory bool   // a directory is wanted, not a file
	place     bool   // and only its place counts, not the directory itself
	shared    bool   // others can add names to dir, which is sticky
	dir       int    // O_PATH descriptor
	path      string // of dir, for messages
	rest      []string
	links     int
}

func (w *walker) close() {
	if w.dir >= 0 {
		_ = unix.Close(w.dir) // O_PATH: nothing to lose
		w.dir = -1
	}
}

func (w *walker) join(name string) string { return strings.TrimSuffix(w.path, "/") + "/" + name }

func (w *walker) fail(name string, err error) error {
	e := &Error{Path: w.join(name), Err: err}
	switch {
	case errors.Is(err, unix.ENOENT):
		e.What = "does not exist"
	case errors.Is(err, unix.ENOTDIR):
		e.What = "is a file, not a directory"
	}
	return e
}

func (w *walker) toRoot() error {
	w.close()
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &Error{Path: "/", Err: err}
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
		if len(w.rest) > 0 || w.directory {
			return -1, w.fail(name, unix.ENOTDIR)
		}
		return w.open(name)
	}
	return -1, notRegular(w.join(name), st.Mode)
}

func (w *walker) enter(name string) error {
	fd, err := unix.Openat(w.dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.fail(name, err)
	}
	path := w.join(name)
	w.close()
	w.dir, w.path = fd, path
	if w.place && len(w.rest) == 0 && !w.shared {
		return nil
	}
	return w.checkDir()
}

// checkDir: in a sticky directory others can add names, but not replace ours;
// what stands there is checked by its own owner and mode.
func (w *walker) checkDir() error {
	var st unix.Stat_t
	if err := unix.Fstat(w.dir, &st); err != nil {
		return &Error{Path: w.path, Err: err}
	}
	w.shared = st.Mode&0o022 != 0
	return w.check(w.path, &st, st.Mode&unix.S_ISVTX != 0)
}

// check refuses what others can write. An owner who is neither root nor the
// trusted user could change it whatever its mode says now.
func (w *walker) check(path string, st *unix.Stat_t, modeIsFine bool) error {
	if st.Uid != 0 && int(st.Uid) != w.uid {
		return &Error{
			Path: path, What: fmt.Sprintf("belongs to user %d, who could change it", st.Uid),
			Tip: fmt.Sprintf("it must belong to root or to user %d, who runs this: chown it, or keep it elsewhere", w.uid), Foreign: true,
		}
	}
	if st.Mode&0o022 != 0 && !modeIsFine {
		return &Error{Path: path, What: fmt.Sprintf("can be written by others (mode %04o)", st.Mode&0o7777), Tip: "chmod go-w " + path, Foreign: true}
	}
	return nil
}

func (w *walker) follow(name string, st *unix.Stat_t) error {
	if w.links++; w.links > maxLinks {
		return &Error{Path: w.join(name), What: fmt.Sprintf("is behind more than %d links", maxLinks), Err: unix.ELOOP, Tip: "do the links point at each other?"}
	}
	// A link's own mode says nothing, its owner does.
	if err := w.check(w.join(name), st, true); err != nil {
		return err
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(w.dir, name, buf[:])
	if err != nil {
		return w.fail(name, err)
	}
	target := string(buf[:n])
	// What a link in /proc leads to is not its text: "pipe:[4711]", or the path
	// of a file that was replaced.
	if target == "" || strings.HasPrefix(w.path, "/proc/") {
		return &Error{
			Path: w.join(name), What: fmt.Sprintf("is an open descriptor (%s), not a regular file", target),
			Tip: "give the path of a file; `<(…)` of a shell is a pipe",
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
	if err = unix.Fstat(fd, &st); err != nil {
		err = w.fail(name, err)
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = notRegular(w.join(name), st.Mode)
	} else {
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
	return &Error{Path: path, What: "is " + what + ", not a regular file", Tip: "give the path of a regular file"}
}
