// SPDX-License-Identifier: Apache-2.0

// Package testkvm lets the tests of several packages use /dev/kvm as other users
// on a machine where no udev opened it to them, and leaves it as it was.
package testkvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Device is KVM's.
const Device = "/dev/kvm"

// open is the mode in which every user may use it.
const open = fs.FileMode(0o666)

// mark is how a mode that was changed says what it was: a bit that means nothing
// on a device. So the last of several test processes can undo what the first did,
// and the next run what a killed one left.
func mark(perm fs.FileMode) (fs.FileMode, bool) {
	bit, known := map[fs.FileMode]fs.FileMode{0o600: fs.ModeSticky, 0o660: fs.ModeSetgid}[perm]
	return open | bit, known
}

// unmark returns the mode from before it was changed.
func unmark(mode fs.FileMode) (perm fs.FileMode, changed bool) {
	for _, perm := range []fs.FileMode{0o600, 0o660} {
		if m, _ := mark(perm); m == mode {
			return perm, true
		}
	}
	return mode.Perm(), false
}

// Works returns why this process cannot use KVM.
func Works() error {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Open opens the device to every user until the test ends, where root tests and it
// is not so anyhow. It skips the test where there is no KVM.
func Open(t testing.TB) {
	t.Helper()
	done, err := ToAll()
	if err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	t.Cleanup(done)
}

// ToAll is Open for a program that is no test. Its caller calls done in the end.
func ToAll() (done func(), err error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return func() {}, f.Close()
	}
	narrow, err := widen(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s cannot be opened to other users: %w", Device, err), f.Close())
	}
	return func() { narrow(); _ = f.Close() }, nil
}

// widen changes the mode of a file until the last of those who did so is done. Each
// holds a lock meanwhile.
func widen(f *os.File) (done func(), err error) {
	if err := lock(f, unix.LOCK_SH); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const bits = fs.ModePerm | fs.ModeSticky | fs.ModeSetgid
	perm, changed := unmark(st.Mode() & bits)
	if !changed {
		if perm&open == open {
			return func() {}, nil
		}
		mode, known := mark(perm)
		if !known {
			return nil, errors.New("its mode is " + perm.String())
		}
		if err := f.Chmod(mode); err != nil {
			return nil, err
		}
	}
	return func() {
		if lock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = f.Chmod(perm)
		}
		_ = lock(f, unix.LOCK_UN)
	}, nil
}

func lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
