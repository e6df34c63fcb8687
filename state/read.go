// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Found is a VM's record, and whether what it says is so now.
type Found struct {
	Record
	// Dead is why nothing runs any more, "" for a VM that runs: the record is
	// then what a crash left behind, and the next start clears it.
	Dead string

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

// Read reads the record of the VM called name below root, and looks whether its
// runner lives. Only a record is believed whose directory and file belong to root
// or to us: in the directory of its unit a VM's user could write what it likes,
// and that is an *UntrustedError. The error is fs.ErrNotExist if there is none.
func Read(root, name string) (*Found, error) {
	for {
		found, again, err := read(root, name)
		if err != nil || !again {
			return found, err
		}
	}
}

// read returns true for a record that went away, or was replaced, while it was
// looked at: a runner that ends removes it before it ends.
func read(root, name string) (*Found, bool, error) {
	dir, err := openDir(filepath.Join(root, name))
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	r, err := readRecord(dir)
	if err != nil {
		return nil, false, err
	}
	f := &Found{Record: *r}
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
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, &UntrustedError{Path: path, Why: "is not a directory"}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
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
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	return holderOf(dir)
}

// holderOf tries the lock for reading, which two who only look can do at once.
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
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return 0, false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return readPID(f), true, nil
	default:
		return 0, false, &os.PathError{Op: "lock", Path: path, Err: err}
	}
}

// Names lists the VMs that have a runtime directory below root, sorted; none if
// there is no root. Each may be one that runs, or what is left of it.
func Names(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
