// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Found is a VM's record, and whether what it says is so now.
type Found struct {
	Record
	// Dead is why nothing runs any more, "" for a VM that runs: the record is
	// then what a crash left behind, and the next start clears it.
	Dead string
	// Dir is its runtime directory.
	Dir string

	handle *Handle
}

// Handle holds the runner of a VM that runs; it is nil otherwise, and without a
// record. Close closes it.
func (f *Found) Handle() *Handle {
	if f == nil {
		return nil
	}
	return f.handle
}

// Close lets go of the runner.
func (f *Found) Close() {
	if f != nil && f.handle != nil {
		_ = f.handle.Close()
		f.handle = nil
	}
}

// places are where a VM's record can be: a plain run's of root, and everyone else's.
func places(root, name string) []string {
	return []string{filepath.Join(root, plainName, name), filepath.Join(root, name)}
}

// Read reads the record of the VM called name below root, and looks whether its
// runner lives. Only a record is believed whose directory and file belong to root
// or to us: in the directory of its unit a VM's user could write what it likes,
// and that is an *UntrustedError. The error is fs.ErrNotExist if there is none.
func Read(root, name string) (*Found, error) {
	var left *Found
	err := error(fs.ErrNotExist)
	for _, dir := range places(root, name) {
		found, ferr := readAt(dir)
		switch {
		case ferr == nil && found.Dead == "":
			return found, nil
		case ferr == nil && left == nil:
			left = found
		case ferr != nil && errors.Is(err, fs.ErrNotExist):
			err = ferr
		}
	}
	if left != nil {
		return left, nil
	}
	return nil, err
}

func readAt(dir string) (*Found, error) {
	for {
		found, again, err := read(dir)
		if err != nil || !again {
			return found, err
		}
	}
}

// read returns true for a record that went away, or was replaced, while it was
// looked at: a runner that ends removes it before it ends.
func read(path string) (*Found, bool, error) {
	dir, err := openDir(path)
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if err != nil {
		return nil, false, err
	}
	f := &Found{Record: *r, Dir: path}
	if err := f.look(dir); err != nil {
		return nil, false, err
	}
	if f.Dead == "" {
		return f, false, nil
	}
	now, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	return f, err == nil && now.Runner != r.Runner, nil
}

// openDir opens a runtime directory that belongs to root or to us.
func openDir(path string) (*os.File, error) {
	dir, err := openAny(path)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, &UntrustedError{Path: path, Why: "is not a directory"}
	}
	if err != nil {
		return nil, err
	}
	if err := checkOpen(dir); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

// checkOpen is checkOwner for what is open already.
func checkOpen(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return &UntrustedError{Path: f.Name(), Why: fmt.Sprintf("belongs to uid %d", st.Uid)}
	case info.Mode().Perm()&0o022 != 0:
		return &UntrustedError{Path: f.Name(), Why: "can be written by others"}
	}
	return nil
}

// look finds out whether the runner lives: the same boot of the host, the same
// process, and the lock that it holds from its start to its end.
func (f *Found) look(dir *os.File) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if f.BootID != boot {
		f.Dead = "the host was started anew since"
		return nil
	}
	h, err := f.Runner.open()
	if errors.Is(err, errEnded) {
		f.Dead = fmt.Sprintf("its runner, process %d, has ended", f.Runner.PID)
		return nil
	}
	if err != nil {
		return err
	}
	// After the process was taken hold of: who holds the lock now wrote its number
	// there, so it lives, and the handle is its.
	holder, held, err := holderOf(dir)
	if err == nil && (!held || holder != f.Runner.PID) {
		f.Dead = "nobody holds its lock"
	}
	if err != nil || f.Dead != "" {
		return errors.Join(err, h.Close())
	}
	f.handle = h
	return nil
}

// Held reports whether somebody runs the VM, and the process that wrote its
// number into the lock, 0 if it cannot be told. Of a directory that is not root's
// or ours this is the word of its owner.
func Held(root, name string) (pid int, held bool, err error) {
	path := filepath.Join(root, name)
	f, err := openAny(path)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	if held, err = tryLock(f); err != nil || !held {
		return 0, false, err
	}
	for _, place := range places(root, name) {
		dir, err := openAny(place)
		if err != nil {
			continue
		}
		n, _, _ := holderOf(dir) // what is no lock tells nothing
		_ = dir.Close()
		if n > 0 {
			return n, true, nil
		}
	}
	return 0, true, nil
}

// openAny opens a directory, whoever it belongs to.
func openAny(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// tryLock reports whether somebody holds a lock. It tries it for reading, which
// two who only look can do at once; closing the file gives it back.
func tryLock(f *os.File) (held bool, err error) {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	default:
		return false, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
}

// holderOf reports whether somebody holds the lock in a runtime directory, and the
// number in it.
func holderOf(dir *os.File) (pid int, held bool, err error) {
	path := filepath.Join(dir.Name(), lockName)
	fd, err := unix.Openat(int(dir.Fd()), lockName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := checkLock(f); err != nil {
		return 0, false, err
	}
	if held, err = tryLock(f); err != nil || !held {
		return 0, false, err
	}
	return readPID(f), true, nil
}

// Names lists the VMs that have a runtime directory below root, sorted; none if
// there is no root. Each may be one that runs, or what is left of it.
func Names(root string) ([]string, error) {
	var names []string
	for _, dir := range []string{root, filepath.Join(root, plainName)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != plainName {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
