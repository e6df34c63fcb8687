// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readOnly is what the child needs to see a directory read-only, made ready
// before the fork.
type readOnly struct {
	path, root, empty *byte
	bind, remount     uintptr         // flags of mount(2); remount 0: by attr
	attr              *unix.MountAttr // for mount_setattr(2), which reaches the mounts below
}

func newReadOnly(path string) (*readOnly, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, fmt.Errorf("looking at %s: %w", path, err)
	}
	return readOnlyFor(path, hasMountSetattr(), int64(fs.Flags))
}

// readOnlyFor: without mount_setattr(2), each mount would have to be made
// read-only by itself. So those below are left out there.
func readOnlyFor(path string, setattr bool, flags int64) (*readOnly, error) {
	r := &readOnly{bind: unix.MS_BIND}
	if setattr {
		r.bind |= unix.MS_REC
		r.attr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	} else {
		r.remount = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | keptFlags(flags)
	}
	for s, to := range map[string]**byte{path: &r.path, "/": &r.root, "": &r.empty} {
		p, err := unix.BytePtrFromString(s)
		if err != nil {
			return nil, err
		}
		*to = p
	}
	if path == "/" {
		r.path = r.root
	}
	return r, nil
}

// hasMountSetattr: Linux 5.12. Without a path or an attribute it refuses, where it exists.
func hasMountSetattr() bool {
	_, _, errno := unix.Syscall6(unix.SYS_MOUNT_SETATTR, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS
}

// keptFlags are those of the mount a directory is on, from statfs(2): a remount
// sets all of them.
func keptFlags(flags int64) uintptr {
	var out uintptr
	for _, f := range []struct {
		st int64
		ms uintptr
	}{
		{unix.ST_NOSUID, unix.MS_NOSUID},
		{unix.ST_NODEV, unix.MS_NODEV},
		{unix.ST_NOEXEC, unix.MS_NOEXEC},
		{unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME},
		{unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if flags&f.st != 0 {
			out |= f.ms
		}
	}
	return out
}

// makeReadOnly gives the child a mount namespace in which the directory is mounted
// over itself, read-only and private: what is mounted below it later, and could be
// written, does not arrive. Elsewhere the namespace is the host's slave, so that it
// keeps nothing mounted that the host unmounts.
//
//go:nosplit
//go:noinline
//go:norace
func makeReadOnly(r *readOnly) (step, syscall.Errno) {
	if _, _, errno := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0); errno != 0 {
		return stepNamespace, errno
	}
	if errno := mount(nil, r.root, r.empty, unix.MS_REC|unix.MS_SLAVE); errno != 0 {
		return stepNamespace, errno
	}
	if errno := mount(r.path, r.path, r.empty, r.bind); errno != 0 {
		return stepReadOnly, errno
	}
	if r.attr == nil {
		if errno := mount(nil, r.path, r.empty, unix.MS_PRIVATE); errno != 0 {
			return stepReadOnly, errno
		}
		return stepReadOnly, mount(nil, r.path, r.empty, r.remount)
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_MOUNT_SETATTR, atFDCWD, uintptr(unsafe.Pointer(r.path)),
		unix.AT_RECURSIVE, uintptr(unsafe.Pointer(r.attr)), unsafe.Sizeof(*r.attr), 0)
	return stepReadOnly, errno
}

// atFDCWD is AT_FDCWD, -100, as a register holds it.
const atFDCWD = ^uintptr(99)

//go:nosplit
//go:noinline
//go:norace
func mount(source, target, kind *byte, flags uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(source)), uintptr(unsafe.Pointer(target)),
		uintptr(unsafe.Pointer(kind)), flags, 0, 0)
	return errno
}
