// SPDX-License-Identifier: Apache-2.0

// Package state keeps what a running VM leaves in the file system: its runtime
// directory, the lock that keeps a second start away, and the record of what
// runs. It survives a crash: the kernel drops the lock, the next start clears the
// directory, and a record whose runner is gone is known as such.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	// lookers is how often in a row the lock may be in the hands of somebody who
	// only looks; each has it for microseconds.
	lookers = 10_000
)

// Claim is the right to run one VM, held by this process until Close or its death.
type Claim struct {
	dir  string
	keep bool // the directory is systemd's, which removes it itself
	lock *os.File
}

// BusyError says that the VM runs already.
type BusyError struct {
	Name string
	PID  int // 0 if it could not be told
}

func (e *BusyError) Error() string {
	if e.PID > 0 {
		return fmt.Sprintf("VM %s runs already, started by process %d", e.Name, e.PID)
	}
	return fmt.Sprintf("VM %s runs already", e.Name)
}

// Hint says what to do about it.
func (e *BusyError) Hint() string {
	return "stop the running one first (systemctl stop, or Ctrl-C where it was started)"
}

// Acquire takes the lock of the VM called name below root, makes its runtime
// directory (mode 0700) and removes what a dead predecessor left in it.
// It returns a *BusyError if the VM runs already.
func Acquire(root, name string) (*Claim, error) {
	if err := makeRoot(root); err != nil {
		return nil, &SetupError{err}
	}
	c := &Claim{dir: filepath.Join(root, name), keep: UnitDir(os.Getenv) == filepath.Join(root, name)}
	// A predecessor that ends just now removes its lock: then take the new one.
	for {
		again, err := c.take(name)
		if err != nil {
			return nil, &SetupError{err}
		}
		if !again {
			break
		}
	}
	if err := c.clear(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("clear what a dead predecessor left: %w", err)
	}
	return c, nil
}

// take opens and locks the lock file. It returns true if the file was removed meanwhile.
func (c *Claim) take(name string) (bool, error) {
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	if err := checkDir(c.dir); err != nil {
		return false, err
	}
	path := filepath.Join(c.dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // the directory went away between the two calls
	}
	if err != nil {
		if !c.keep {
			_ = os.Remove(c.dir) // ours, or nobody's: it has no lock
		}
		return false, err
	}
	if err := checkLock(f); err != nil {
		return false, errors.Join(err, f.Close())
	}
	if err := lock(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, &BusyError{Name: name, PID: readPID(f)}
		}
		return false, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	if !same(f, path) {
		return true, f.Close()
	}
	c.lock = f
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return false, errors.Join(err, c.Close())
	}
	return false, nil
}

// lock takes the lock. Somebody who only looks whether it is held has it for a
// moment, shared: that is not a VM that runs.
func lock(f *os.File) error {
	for range lookers {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
			return err
		}
		runtime.Gosched()
	}
	return unix.EWOULDBLOCK
}

// checkDir refuses a runtime directory that is a link or no directory. It may
// belong to the VM's own user when that VM's unit runs: the lock tells then.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return &UntrustedError{Path: dir, Why: "is not a directory"}
	}
	if uid := os.Geteuid(); uid != 0 && int(st.Uid) != uid {
		return &UntrustedError{Path: dir, Why: fmt.Sprintf("belongs to uid %d", st.Uid)}
	}
	return nil
}

// checkLock refuses a lock that is another file's second name: it is about to be written.
func checkLock(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || st.Nlink > 1 {
		return &UntrustedError{Path: f.Name(), Why: "is not a plain file with one name"}
	}
	return nil
}

func same(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

func readPID(f *os.File) int {
	buf := make([]byte, 16)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return 0
	}
	return pid
}

// clear removes everything in the directory but the lock.
func (c *Claim) clear() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(c.dir, e.Name())))
		}
	}
	return err
}

// Dir is the VM's runtime directory, mode 0700, empty after Acquire but for the lock.
func (c *Claim) Dir() string { return c.dir }

// Close removes the runtime directory and gives the lock back.
func (c *Claim) Close() error {
	if c.lock == nil {
		return nil
	}
	err := c.clear()
	if rm := os.Remove(filepath.Join(c.dir, lockName)); !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	if !c.keep {
		if rm := os.Remove(c.dir); !errors.Is(rm, fs.ErrNotExist) && !errors.Is(rm, syscall.ENOTEMPTY) {
			err = errors.Join(err, rm)
		}
	}
	err = errors.Join(err, c.lock.Close())
	c.lock = nil
	return err
}
