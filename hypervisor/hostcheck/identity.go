// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

// tryAs asks the kernel about each access for that user: as itself, or on a
// thread of its own that takes the user's file system identity and then ends.
func tryAs(id *launch.Identity, wants []access) ([]error, error) {
	if id == nil || (int(id.UID) == os.Geteuid() && int(id.GID) == os.Getegid()) {
		return tryAll(wants), nil
	}
	var errs []error
	failed := make(chan error)
	defer keepDumpable()()
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := becomeForFiles(id)
		if err == nil {
			errs = tryAll(wants)
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		return nil, fmt.Errorf("becoming %s: %w", UserName(id), err)
	}
	return errs, nil
}

// keepDumpable returns what sets this process's dumpable attribute as it is now.
// When a thread changes its file system identity, the kernel gives the whole
// process that of fs.suid_dumpable: on some hosts 1, which the runner must not be.
func keepDumpable() (restore func()) {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	return func() {
		// 2 cannot be set: nobody has set it, it is fs.suid_dumpable already.
		if err == nil && was != 2 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(was), 0, 0, 0) // 0 and 1 are always taken
		}
	}
}

// becomeForFiles changes the calling thread only. Leaving uid 0 takes the
// capabilities over files with it (capabilities(7)).
func becomeForFiles(id *launch.Identity) error {
	groups := append([]uint32{id.GID}, id.Groups...)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
		return errno
	}
	// These return the former id, whether they worked or not: ask twice.
	_, _ = unix.SetfsgidRetGid(int(id.GID))
	_, _ = unix.SetfsuidRetUid(int(id.UID))
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if gid != int(id.GID) || uid != int(id.UID) {
		return unix.EPERM
	}
	return nil
}

func tryAll(wants []access) []error {
	errs := make([]error, len(wants))
	for i, w := range wants {
		mode := uint32(unix.R_OK)
		if w.write {
			mode |= unix.W_OK
		}
		if w.enter {
			mode |= unix.X_OK
		}
		errs[i] = unix.Faccessat(unix.AT_FDCWD, w.path, mode, unix.AT_EACCESS)
	}
	return errs
}
