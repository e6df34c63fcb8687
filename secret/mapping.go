// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mlockOnFault is MLOCK_ONFAULT of mlock2(2): pages are locked when first used.
const mlockOnFault = 1

// mapping is one run of locked pages that slots are cut from. Its fields are
// guarded by the arena's mutex.
type mapping struct {
	// mem hides the pages behind a function: no printer that walks fields by
	// reflection can follow it.
	mem    func() []byte
	secret bool // memfd_secret, not mlock
	used   int  // bytes handed out, from the start
	live   int  // slots that were not freed
	pins   int  // users inside Use
}

// newMapping maps at least n bytes. Nothing is touched yet, so only pages that
// are used cost memory; RLIMIT_MEMLOCK counts all of them.
func newMapping(n int) (*mapping, error) {
	n = roundUp(n, os.Getpagesize())
	mem, err := mapSecret(n)
	if err == nil {
		return &mapping{mem: func() []byte { return mem }, secret: true}, nil
	}
	mem, err = mapLocked(n)
	if err != nil {
		return nil, err
	}
	return &mapping{mem: func() []byte { return mem }}, nil
}

// mapSecret maps memfd_secret pages (Linux 5.14; off by default before 6.5).
// The kernel locks them and leaves them out of dumps by itself.
func mapSecret(n int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	return mem, nil
}

// mapLocked is what older kernels and some containers leave us.
func mapLocked(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", n, err)
	}
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&mem[0])), uintptr(n), mlockOnFault)
	if errno == unix.ENOSYS {
		errno, _ = unix.Mlock(mem).(unix.Errno)
	}
	if errno != 0 {
		return nil, errors.Join(lockError(n, errno), unix.Munmap(mem))
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(mem, advice); err != nil {
			return nil, errors.Join(fmt.Errorf("protecting locked memory: %w", err), unix.Munmap(mem))
		}
	}
	return mem, nil
}

func lockError(n int, err error) error {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) != nil {
		lim.Cur = 0
	}
	return &LockError{Bytes: n, Limit: lim.Cur, Err: err}
}

// unmap wipes and gives back the pages. Only what was handed out is wiped: the
// rest was never written, and touching it would fault it in.
func (m *mapping) unmap() error {
	mem := m.mem()
	clear(mem[:m.used])
	m.mem, m.used, m.live = func() []byte { return nil }, 0, 0
	return unix.Munmap(mem)
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
