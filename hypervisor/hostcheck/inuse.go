// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

// InUseError says that another VM has a disk. It may be gone in a moment, as a
// predecessor is that was killed, so it is no refusal for good.
type InUseError struct {
	Field string // as in the VM's file: "disks[0].path"
	Path  string
	How   string // "has it open for writing"
}

// Error implements error.
func (e *InUseError) Error() string {
	return fmt.Sprintf("%s: %s: another VM %s", e.Field, QuotePath(e.Path), e.How)
}

// Hint says what to do about it.
func (e *InUseError) Hint() string { return "stop the other VM, or give this one a disk of its own" }

// BeforeStart is the last look before a VMM is started: the error is vm.Problems if
// its user may not open something, or an [*InUseError].
func BeforeStart(spec *vm.Spec, access []vm.Problem) error {
	if ps := vm.Problems(access).Fatal(); len(ps) > 0 {
		return ps
	}
	return InUse(spec)
}

// InUse looks for a disk that another VMM has, as far as it says so by a lock, and
// returns an [*InUseError] then. It only asks: a lock that was taken to find out could
// make another VM's start fail. What cannot be asked is for the VMM to find out.
func InUse(spec *vm.Spec) error {
	for i, d := range spec.Disks {
		if how := lockedFor(d); how != "" {
			return &InUseError{Field: fmt.Sprintf("disks[%d].path", i), Path: d.Path, How: how}
		}
	}
	return nil
}

// QEMU has shared locks on single bytes of a disk: from 100 on for what it does with
// it, from 200 on for what it lets nobody else do (block/file-posix.c). The second byte
// of each is for writing (include/block/block-common.h).
const (
	qemuWrites  = 100 + 1
	qemuForbids = 200 + 1
)

// lockedFor says how another process has the disk so that this VM cannot have it, too.
// cloud-hypervisor's one lock begins with the first byte: it excludes others if the
// disk can be written (block/src/io/fcntl.rs).
func lockedFor(d vm.Disk) string {
	fd, err := openDisk(d.Path)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	const writing = "has it open for writing"
	if _, held := locked(fd, unix.F_RDLCK, 0, math.MaxInt64); held {
		return writing // a lock that excludes even who only reads
	}
	// Of neighbours' locks the kernel makes one, but none of QEMU's begins at 0.
	if lock, held := locked(fd, unix.F_WRLCK, qemuWrites, 1); held && lock.Start > 0 {
		return writing
	}
	if d.ReadOnly {
		return ""
	}
	if _, held := locked(fd, unix.F_WRLCK, 0, 1); held {
		return "reads it, and it must not change under it"
	}
	if _, held := locked(fd, unix.F_WRLCK, qemuForbids, 1); held {
		return "reads it, and it must not change under it"
	}
	return ""
}

// locked asks whether another open file has a lock in the way of such a one.
func locked(fd int, kind int16, start, length int64) (unix.Flock_t, bool) {
	l := unix.Flock_t{Type: kind, Start: start, Len: length}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil {
		return l, false // this file system has no locks
	}
	return l, l.Type != unix.F_UNLCK
}

// openDisk opens nothing but a regular file or a block device: opening may do
// something in others, and who owns the directory could put one there.
func openDisk(path string) (int, error) {
	at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return -1, unix.EINVAL
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// twice refuses a disk that is another one of this VM as well, unless nobody writes it.
func (c *Checker) twice(i int) {
	d := c.spec.Disks[i]
	for j, before := range c.spec.Disks[:i] {
		if (!d.ReadOnly || !before.ReadOnly) && sameFile(d.Path, before.Path) {
			c.Fault(fmt.Sprintf("disks[%d].path", i), fmt.Sprintf("disks[%d] is the same file, and the guest could write it by two ways", j),
				"give each disk a file of its own, or make both readonly")
			return
		}
	}
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
