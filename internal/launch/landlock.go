// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scopeABI is the first Landlock ABI with scopes (Linux 6.12).
const scopeABI = 6

// confineThread puts the calling thread, and what it forks, under no_new_privs
// and into a Landlock domain of its own. Being in a domain closes /proc/PID and
// ptrace of every process outside it; scopes close signals and abstract sockets
// too. A domain needs at least one restriction: kernels without scopes get the
// making of block devices, which no VMM does.
//
// It returns in a few words what it could do. Only no_new_privs must work.
func confineThread() (string, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", fmt.Errorf("setting no_new_privs: %w", err)
	}
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return "no landlock: " + landlockMissing(errno), nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK}
	size := unsafe.Sizeof(attr.Handled_access_fs) // all that ABI 1 knows
	words := fmt.Sprintf("landlock without scopes (ABI %d)", abi)
	if abi >= scopeABI {
		attr = unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET}
		size = unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped)
		words = "landlock with scopes"
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return "", fmt.Errorf("making a landlock ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return "", fmt.Errorf("entering a landlock domain: %w", errno)
	}
	return words, nil
}

func landlockMissing(errno unix.Errno) string {
	switch errno {
	case unix.ENOSYS:
		return "this kernel has none"
	case unix.EOPNOTSUPP:
		return "disabled when this kernel booted"
	default:
		return errno.Error()
	}
}
