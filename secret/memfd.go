// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Memfd hands a rope to another process: a memory file whose pages are locked
// until it is released.
type Memfd struct {
	mu   sync.Mutex
	file *os.File
	size int64
	lock []byte // a mapping that is never read or written: it only keeps the pages locked
}

// NewMemfd writes r into a new memory file of mode 0400 that belongs to this
// process's user, with its offset at 0. The name is for people who look at
// /proc/PID/fd, at most 249 bytes. The file is close-on-exec and, where the
// kernel can (6.3), never executable.
func NewMemfd(name string, r Rope) (*Memfd, error) {
	fd, err := createMemfd(name)
	if err != nil {
		return nil, fmt.Errorf("making memory file %s: %w", name, err)
	}
	m := &Memfd{file: os.NewFile(uintptr(fd), name), size: int64(r.Len())}
	if err := m.fill(fd, r); err != nil {
		return nil, errors.Join(fmt.Errorf("filling memory file %s: %w", name, err), m.Release())
	}
	return m, nil
}

// createMemfd makes the file so that whoever gets it can add no seal, which would
// keep Release from wiping it.
func createMemfd(name string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		return unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (m *Memfd) fill(fd int, r Rope) error {
	if err := unix.Fchmod(fd, 0o400); err != nil {
		return err
	}
	if m.size > 0 {
		if err := unix.Ftruncate(fd, m.size); err != nil {
			return err
		}
		if err := m.lockPages(fd); err != nil {
			return err
		}
	}
	n, err := r.WriteTo(m.file)
	if err == nil && n != m.size {
		err = ErrWiped // a value was wiped between measuring and writing
	}
	if err != nil {
		return err
	}
	_, err = unix.Seek(fd, 0, unix.SEEK_SET)
	return err
}

// lockPages keeps the file's pages from being swapped.
func (m *Memfd) lockPages(fd int) error {
	mem, err := unix.Mmap(fd, 0, int(m.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	m.lock = mem
	if err := unix.Mlock(mem); err != nil {
		return lockError(len(mem), err)
	}
	return errors.Join(unix.Madvise(mem, unix.MADV_DONTDUMP), unix.Madvise(mem, unix.MADV_DONTFORK))
}

// File returns the file, nil after Release. Do not close it.
func (m *Memfd) File() *os.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.file
}

// Chown gives the file to another user, who may then open it again by
// /proc/PID/fd, as a program does that is told a path in /dev/fd.
func (m *Memfd) Chown(uid, gid int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return ErrWiped
	}
	return m.file.Chown(uid, gid)
}

// Release zeroes the pages and truncates the file, so that a process that still
// holds it finds nothing, and closes it. Releasing again does nothing.
func (m *Memfd) Release() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return nil
	}
	// Zeroed with pwrite(2), not by the mapping: whoever holds the file may have
	// truncated it, and touching the mapping would then be a fatal fault.
	errs := []error{zero(m.file, m.size), m.file.Truncate(0)}
	if m.lock != nil {
		errs = append(errs, unix.Munmap(m.lock))
	}
	errs = append(errs, m.file.Close())
	m.file, m.lock = nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("wiping a memory file: %w", err)
	}
	return nil
}

func zero(f *os.File, size int64) error {
	zeros := make([]byte, min(size, 64<<10))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}
