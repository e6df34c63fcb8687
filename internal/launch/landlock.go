// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scopeABI is the first Landlock ABI with scopes (Linux 6.12).
const scopeABI = 6

// newRuleset makes the ruleset of a process's Landlock domain and says in a few
// words what it is; -1 if this kernel has no Landlock. Being in a domain closes
// /proc/PID and ptrace of every process outside it; scopes close signals and
// abstract sockets too. A domain needs at least one restriction: kernels without
// scopes get the making of block devices, which no VMM does.
// mounts: such a domain would refuse the process its mounts, which makes it none.
func newRuleset(mounts bool) (fd int, words string, err error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return -1, "no landlock: " + landlockMissing(errno), nil
	}
	if !enters(int(abi), mounts) {
		return -1, fmt.Sprintf("no landlock: with that of this kernel (ABI %d) it could not mount", abi), nil
	}
	attr, size, words := rulesetFor(int(abi))
	r, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return -1, "", fmt.Errorf("making a landlock ruleset: %w", errno)
	}
	return int(r), words, nil
}

// enters says whether a process is put into a domain of that ABI: one that handles
// a right to files refuses every mount(2).
func enters(abi int, mounts bool) bool { return !mounts || abi >= scopeABI }

// rulesetFor returns the strictest ruleset of this kind that an ABI has, and how
// many bytes of it that ABI knows.
func rulesetFor(abi int) (unix.LandlockRulesetAttr, uintptr, string) {
	var attr unix.LandlockRulesetAttr
	if abi >= scopeABI {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		return attr, unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped), "landlock with scopes"
	}
	attr.Handled_access_fs = unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	return attr, unsafe.Sizeof(attr.Handled_access_fs), fmt.Sprintf("landlock without scopes (ABI %d)", abi)
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
