// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// osDisk is a directory that is open already: whatever becomes of its path, it is
// this one.
type osDisk struct{ dir *os.File }

func (d osDisk) Path() string { return d.dir.Name() }
func (d osDisk) fd() int      { return int(d.dir.Fd()) }

func (d osDisk) Open(name string, create bool) (file, error) {
	flags := unix.O_RDWR
	if create {
		flags |= unix.O_CREAT
	}
	f, err := d.open(name, flags)
	if err != nil {
		return nil, err
	}
	if err := f.own(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d osDisk) Read(name string) (file, error) {
	f, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// open follows no link, and a pipe in the file's place does not hang us.
func (d osDisk) open(name string, flags int) (osFile, error) {
	const always = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := again(func() (int, error) { return unix.Openat(d.fd(), name, flags|always, 0o600) })
	if errors.Is(err, unix.ELOOP) {
		return osFile{}, fmt.Errorf("%s is a link, which is not followed", name)
	}
	if err != nil {
		return osFile{}, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := osFile{os.NewFile(uintptr(fd), name)}
	st, err := f.stat()
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return osFile{}, errors.Join(err, f.Close())
	}
	return f, nil
}

func (d osDisk) Lock(ctx context.Context, name string, create bool) (file, error) {
	f, err := d.Open(name, create)
	if err != nil {
		return nil, err
	}
	fd := int(f.(osFile).Fd())
	lock := func(how int) error {
		_, err := again(func() (int, error) { return 0, unix.Flock(fd, how) })
		return err
	}
	if err := lock(unix.LOCK_EX | unix.LOCK_NB); err == nil {
		return f, nil
	} else if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(&os.PathError{Op: "lock", Path: name, Err: err}, f.Close())
	}
	got := make(chan error, 1)
	go func() { got <- lock(unix.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			return nil, errors.Join(&os.PathError{Op: "lock", Path: name, Err: err}, f.Close())
		}
		return f, nil
	case <-ctx.Done():
		err := &lockedError{holder: holder(f.(osFile)), err: ctx.Err()}
		go func() { // the lock may still come, and must not stay
			<-got
			_ = f.Close()
		}()
		return nil, err
	}
}

// lockedError is a lock that someone else keeps.
type lockedError struct {
	holder int // a process, or 0
	err    error
}

func (e *lockedError) Error() string {
	if e.holder != 0 {
		return fmt.Sprintf("process %d keeps it locked", e.holder)
	}
	return "another process keeps it locked"
}

func (e *lockedError) Unwrap() error { return e.err }

// holder is a process that has locked the file, as far as /proc/locks shows it.
func holder(f osFile) int {
	st, err := f.stat()
	if err != nil {
		return 0
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line) // "1: FLOCK ADVISORY WRITE 4711 fe:00:131 0 EOF"
		if len(w) >= 6 && w[1] == "FLOCK" && w[5] == id {
			pid, _ := strconv.Atoi(w[4]) // 0 says nothing
			return max(pid, 0)
		}
	}
	return 0
}

func (d osDisk) Names() ([]string, error) {
	// A descriptor of its own: who reads beside us has another place in the directory.
	fd, err := again(func() (int, error) {
		return unix.Openat(d.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.Path(), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.Path())
	defer f.Close()
	return f.Readdirnames(-1)
}

func (d osDisk) Link(old, name string) error {
	return os.NewSyscallError("link", unix.Linkat(d.fd(), old, d.fd(), name, 0))
}

func (d osDisk) Rename(old, name string) error {
	return os.NewSyscallError("rename", unix.Renameat(d.fd(), old, d.fd(), name))
}

func (d osDisk) Remove(name string) error {
	return os.NewSyscallError("unlink", unix.Unlinkat(d.fd(), name, 0))
}

func (d osDisk) Sync() error { return d.dir.Sync() }

type osFile struct{ *os.File }

func (f osFile) stat() (st unix.Stat_t, err error) {
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		err = os.NewSyscallError("fstat", err)
	}
	return st, err
}

// own refuses what someone else could write, or has put there.
func (f osFile) own() error {
	st, err := f.stat()
	switch {
	case err != nil:
		return err
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d: %w", f.Name(), st.Uid, unix.EPERM)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s has mode %04o, not 0600: %w", f.Name(), st.Mode&0o7777, unix.EPERM)
	}
	return nil
}

func (f osFile) Size() (int64, error) {
	st, err := f.stat()
	return st.Size, err
}

// Sync is fdatasync(2), which also makes a new size durable.
func (f osFile) Sync() error {
	_, err := again(func() (int, error) { return 0, unix.Fdatasync(int(f.Fd())) })
	return os.NewSyscallError("fdatasync", err)
}

func (f osFile) Same(other file) bool {
	o, ok := other.(osFile)
	if !ok {
		return false
	}
	a, err := f.stat()
	if err != nil {
		return false
	}
	b, err := o.stat()
	return err == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
