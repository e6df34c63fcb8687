// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookers is how often in a row a lock may be in the hands of somebody who only
// looks; each has it for microseconds.
const lookers = 10_000

// gate is the directory that every start of a VM must lock, by its unit or not.
type gate struct {
	path string
	keep bool // it is systemd's
	f    *os.File
}

// openGate makes the directory if it is missing and opens it. It returns nil if it
// went away between the two.
func openGate(path string, keep, apart bool) (*gate, error) {
	made := os.Mkdir(path, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return nil, made
	}
	if err := checkDir(path); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		// Whoever has it by now notices that its lock cannot be made, unless that is
		// somewhere else.
		if made == nil && !apart {
			_ = os.Remove(path)
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &gate{path: path, keep: keep, f: os.NewFile(uintptr(fd), path)}, nil
}

// ours reports whether the directory belongs to our user.
func (g *gate) ours() bool {
	info, err := g.f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// leave gives the lock back. The directory stays if it is systemd's, also if it
// became that meanwhile.
func (g *gate) leave() error {
	var err error
	if !g.keep && g.ours() {
		err = removeDir(g.path)
	}
	return errors.Join(err, g.f.Close())
}

// lock takes a lock. Somebody who only looks whether it is held has it for a
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

// checkDir refuses a runtime directory that is a link or no directory. For root
// it may belong to the VM's own user: it is only locked.
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

// removeDir removes a directory if it is there and empty.
func removeDir(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

// removeAll is os.RemoveAll, also of directories that are closed to their owner.
// Root does not need that, and must not: os.Chmod follows a link that was not one
// a moment ago.
func removeAll(path string) error {
	if err := os.RemoveAll(path); err == nil || os.Geteuid() == 0 {
		return err
	}
	_ = filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil // what cannot be opened cannot be removed, which says so
	})
	return os.RemoveAll(path)
}
