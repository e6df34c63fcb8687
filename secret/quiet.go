// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// quietly runs f, which works on secret bytes without blocking, with this
// thread's signals blocked. A signal's frame holds all vector registers, and Go
// itself sends signals to preempt goroutines: what f had in a register would
// stay on a stack in ordinary memory. Faults still arrive.
func quietly(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	for _, fault := range []unix.Signal{unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGFPE, unix.SIGTRAP} {
		all.Val[0] &^= 1 << (fault - 1)
	}
	// rt_sigprocmask(2) with valid pointers cannot fail.
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old)
	f()
	scrub()
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
}

// scrubSize is what Go's copy on amd64 moves through all sixteen registers at once.
const scrubSize = 256

// scrub takes what was copied or compared last out of the vector registers. A
// length the compiler does not know makes it call the runtime's copy.
//
//go:noinline
func scrub() {
	var from, to [scrubSize]byte
	n := copy(to[:scrubLen(len(from))], from[:])
	runtime.KeepAlive(&to[n-1])
}

//go:noinline
func scrubLen(n int) int { return n }
