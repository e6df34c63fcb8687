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
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	// plainName is where root's plain runs keep what they have, see [Acquire]. No
	// VM's name has a dot.
	plainName = ".run"
)

// Claim is the right to run one VM, held by this process until Close or its death.
type Claim struct {
	gate *gate
	dir  string
	lock *os.File // in dir: who holds it wrote its number there
}

// BusyError says that the VM runs already.
type BusyError struct {
	Name   string
	PID    int  // 0 if it could not be told
	ByUnit bool // by a runner in a directory of the VM's user, which is its unit's
}

func (e *BusyError) Error() string {
	switch {
	case e.ByUnit:
		return fmt.Sprintf("VM %s runs already, as a unit", e.Name)
	case e.PID > 0:
		return fmt.Sprintf("VM %s runs already, started by process %d", e.Name, e.PID)
	}
	return fmt.Sprintf("VM %s runs already", e.Name)
}

// Hint says what to do about it.
func (e *BusyError) Hint() string {
	if e.ByUnit {
		return "stop the running one first (systemctl stop its unit, or vmcred stop " + e.Name + ")"
	}
	return "stop the running one first (vmcred stop " + e.Name + ", or Ctrl-C where it was started)"
}

// Acquire takes the lock of the VM called name below root, makes its runtime
// directory (mode 0700) and removes what a dead predecessor left in it.
// It returns a *BusyError if the VM runs already.
//
// The lock is on the directory NAME itself: nobody but the root's owner can put
// another in its place, whoever it belongs to. That directory is the runtime
// directory, too, but for plain runs below [SystemRoot]: systemd gives it to the
// VM's user at every start of its unit, also while a plain run has its lock. So
// these keep what they have in .run/NAME, and never touch what is in NAME.
func Acquire(root, name string) (*Claim, error) {
	unit := UnitDir(os.Getenv) == filepath.Join(root, name)
	return acquireAt(root, name, root == SystemRoot && !unit, unit)
}

// acquireAt is Acquire for a run whose things are apart from what is locked, or
// whose directory is to stay.
func acquireAt(root, name string, apart, keep bool) (*Claim, error) {
	if err := makeRoot(root); err != nil {
		return nil, &SetupError{err}
	}
	c := &Claim{dir: filepath.Join(root, name)}
	if apart {
		c.dir = filepath.Join(root, plainName, name)
	}
	for {
		again, err := c.take(filepath.Join(root, name), keep)
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

// take takes both locks. It returns true if the directory was removed meanwhile,
// by a predecessor that ended just then.
func (c *Claim) take(path string, keep bool) (bool, error) {
	g, err := openGate(path, keep, c.dir != path)
	if err != nil || g == nil {
		return err == nil, err
	}
	switch err := lock(g.f); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, errors.Join(c.busy(g), g.f.Close())
	case err != nil:
		return false, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, g.f.Close())
	case !same(g.f, path):
		return true, g.f.Close()
	}
	c.gate = g
	err = c.settle()
	if errors.Is(err, fs.ErrNotExist) && !same(g.f, path) {
		c.gate = nil // somebody who could not start removed what it had made
		return true, g.f.Close()
	}
	switch {
	case err == nil:
		return false, nil
	case c.lock == nil: // what lies there may be somebody else's
		c.gate = nil
		return false, errors.Join(err, g.leave())
	default:
		return false, errors.Join(err, c.Close())
	}
}

// busy says who runs the VM. In a directory that another user owns it would be
// that user who says so.
func (c *Claim) busy(g *gate) error {
	e := &BusyError{Name: filepath.Base(g.path)}
	if dir, err := openDir(c.dir); err == nil {
		e.PID, _, _ = holderOf(dir) // without it: 0
		_ = dir.Close()
	}
	e.ByUnit = e.PID == 0 && !g.ours()
	return e
}

// settle makes the runtime directory ours, with our number in its lock. The gate
// is ours by now, so nobody else removes anything there.
func (c *Claim) settle() error {
	if c.dir != c.gate.path {
		for _, dir := range []string{filepath.Dir(c.dir), c.dir} {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := checkOwner(dir); err != nil {
				return err
			}
		}
	} else if !c.gate.ours() {
		return &UntrustedError{Path: c.dir, Why: "belongs to another user"}
	}
	path := filepath.Join(c.dir, lockName)
	if err := removeNoLock(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := checkLock(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := lock(f); err != nil {
		return errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, f.Close())
	}
	c.lock = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// removeNoLock removes what stands in a lock's place and cannot be one: a VMM that
// was taken over may have put it into the directory of its own unit.
func removeNoLock(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && st.Nlink == 1 && info.Mode().Perm()&0o600 == 0o600 {
		return nil
	}
	return removeAll(path)
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
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lockName {
			err = errors.Join(err, removeAll(filepath.Join(c.dir, e.Name())))
		}
	}
	return err
}

// Dir is the VM's runtime directory, mode 0700, empty after Acquire but for the lock.
func (c *Claim) Dir() string { return c.dir }

// Close removes the runtime directory and gives the lock back.
func (c *Claim) Close() error {
	if c.gate == nil {
		return nil
	}
	err := c.clear()
	if rm := os.Remove(filepath.Join(c.dir, lockName)); !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	if c.dir != c.gate.path {
		err = errors.Join(err, removeDir(c.dir))
	}
	if c.lock != nil {
		err = errors.Join(err, c.lock.Close())
	}
	err = errors.Join(err, c.gate.leave())
	c.gate, c.lock = nil, nil
	return err
}
