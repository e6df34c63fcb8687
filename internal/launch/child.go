// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is what the child was doing when it failed.
type step uint32

const (
	stepNone step = iota
	stepSession
	stepNamespace
	stepReadOnly
	stepCapabilities
	stepGroups
	stepGID
	stepUID
	stepKeyring
	stepCore
	stepPrivileges
	stepLandlock
	stepDirectory
	stepDescriptors
	stepParent
	stepExec
)

// childPlan is everything the child needs, made ready before the fork: after it
// the child may neither allocate nor grow its stack.
type childPlan struct {
	path, dir  *byte
	argv, envp **byte
	files      []int32 // source of each descriptor; the child replaces them by its copies
	report     int32   // the error pipe's writing end, and the child's copy of it
	readOnly   *readOnly
	ruleset    int32 // landlock, -1: none
	ppid       uintptr
	mask       *unix.Sigset_t // the signal mask to restore
	setID      bool
	uid, gid   uintptr
	groups     *uint32
	ngroups    uintptr
	core       *unix.Rlimit // nil: leave it

	sigaction [4]uint64 // the kernel's struct: SIG_DFL, no flags
	failure   [2]uint32 // step and errno, as written to the error pipe
}

// forkChild forks. In the parent it returns the child's number; the child never
// returns. It is not os.StartProcess, because only the child may enter the Landlock
// domain: a thread of ours inside it would be a way to send us signals (landlock(7):
// a scope does not separate processes of the same domain).
//
// The caller has blocked all signals on this thread: the child must not run Go's
// handlers.
//
//go:nosplit
//go:noinline
//go:norace
func forkChild(p *childPlan) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	at, errno := becomeProgram(p)
	p.failure[0], p.failure[1] = uint32(at), uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(p.report), uintptr(unsafe.Pointer(&p.failure)), unsafe.Sizeof(p.failure))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

// becomeProgram confines the child and executes the program. It returns only on an error.
//
//go:nosplit
//go:noinline
//go:norace
func becomeProgram(p *childPlan) (step, syscall.Errno) {
	// A session of its own: Ctrl-C at our terminal is ours to handle.
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return stepSession, errno
	}
	if p.readOnly != nil {
		if at, errno := makeReadOnly(p.readOnly); errno != 0 {
			return at, errno
		}
	}
	if at, errno := dropPrivileges(p); errno != 0 {
		return at, errno
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(p.dir)), 0, 0); errno != 0 {
		return stepDirectory, errno
	}
	if errno := placeFiles(p); errno != 0 {
		return stepDescriptors, errno
	}
	// After the change of user, which would reset it.
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	if errno != 0 {
		return stepParent, errno
	}
	if ppid, _, _ := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); ppid != p.ppid {
		return stepParent, unix.ESRCH // it died before we asked to be told
	}
	defaultSignals(p)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(p.mask)), 0, sigsetSize, 0, 0)
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)),
		uintptr(unsafe.Pointer(p.argv)), uintptr(unsafe.Pointer(p.envp)))
	return stepExec, errno
}

// sigsetSize is what the kernel calls sizeof(sigset_t), not the C library.
const sigsetSize = 8

// defaultSignals takes Go's handlers away: with the mask restored, the child may
// get a signal before the program has replaced this one.
//
//go:nosplit
//go:noinline
//go:norace
func defaultSignals(p *childPlan) {
	for sig := uintptr(1); sig <= 64; sig++ { // SIGKILL and SIGSTOP refuse, and need none
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&p.sigaction)), 0, sigsetSize, 0, 0)
	}
}

//go:nosplit
//go:noinline
//go:norace
func dropPrivileges(p *childPlan) (step, syscall.Errno) {
	if p.core != nil {
		_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, uintptr(unsafe.Pointer(p.core)), 0, 0, 0)
		if errno != 0 {
			return stepCore, errno
		}
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0)
	if errno != 0 {
		return stepCapabilities, errno
	}
	if p.setID {
		_, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, p.ngroups, uintptr(unsafe.Pointer(p.groups)), 0)
		if errno != 0 {
			return stepGroups, errno
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, p.gid, p.gid, p.gid); errno != 0 {
			return stepGID, errno
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, p.uid, p.uid, p.uid); errno != 0 {
			return stepUID, errno
		}
	}
	if errno := leaveKeyring(); errno != 0 {
		return stepKeyring, errno
	}
	if _, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return stepPrivileges, errno
	}
	if p.ruleset >= 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(p.ruleset), 0, 0); errno != 0 {
			return stepLandlock, errno
		}
	}
	return stepNone, 0
}

// leaveKeyring gives the child a session's keyring of its own, an empty one. Whoever
// has ours may read what is in it and in root's, as any user (keyrings(7)).
//
//go:nosplit
//go:noinline
//go:norace
func leaveKeyring() syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	if errno == unix.ENOSYS || errno == unix.EPERM {
		return 0 // no keyrings, or a container's filter of calls, which it is behind, too
	}
	return errno
}

// placeFiles gives the descriptors their numbers and marks all others
// close-on-exec. Copies above all numbers in use go first, so that no source is
// overwritten before its turn.
//
//go:nosplit
//go:noinline
//go:norace
func placeFiles(p *childPlan) syscall.Errno {
	n := uintptr(len(p.files))
	fd, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(p.report), unix.F_DUPFD_CLOEXEC, n)
	if errno != 0 {
		return errno
	}
	p.report = int32(fd)
	for i := range p.files {
		fd, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, uintptr(p.files[i]), unix.F_DUPFD_CLOEXEC, n)
		if errno != 0 {
			return errno
		}
		p.files[i] = int32(fd)
	}
	for i := range p.files {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, uintptr(p.files[i]), uintptr(i), 0); errno != 0 {
			return errno
		}
	}
	const last = 1<<32 - 1
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, n, last, unix.CLOSE_RANGE_CLOEXEC); errno == 0 {
		return 0
	}
	// Before Linux 5.11. Go opens all of its own close-on-exec; this is for
	// what we inherited, which has low numbers.
	for fd := n; fd < 1024; fd++ {
		syscall.RawSyscall(unix.SYS_FCNTL, fd, unix.F_SETFD, unix.FD_CLOEXEC)
	}
	return 0
}
