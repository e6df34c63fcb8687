// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Harden makes this process undumpable: no core file, no ptrace, no /proc/PID/mem
// for anyone without CAP_SYS_PTRACE (PR_SET_DUMPABLE in prctl(2)). What it starts
// may leave a core where the limit on them cannot be set (see coreLimit): one
// without memory in it (coredump_filter in core(5), which children inherit).
func Harden() error {
	// First, as an undumpable process may not write there. It is the second line of
	// defence: without it, no start is refused.
	_ = os.WriteFile("/proc/self/coredump_filter", []byte("0"), 0)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making this process undumpable: %w", err)
	}
	limit := coreLimit()
	if limit == nil {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, limit); err != nil {
		return fmt.Errorf("limiting core dumps: %w", err)
	}
	return nil
}

// coreLimit returns the limit on core dumps to set: 1 byte, soft and hard. With 0
// the kernel still runs a core handler behind a pipe, with 1 it does not (core(5)).
// nil: it is so already, or the hard limit is 0 and only root could raise it.
func coreLimit() *unix.Rlimit {
	one := unix.Rlimit{Cur: 1, Max: 1}
	var now unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &now)
	if err == nil && (now == one || now.Max == 0 && os.Geteuid() != 0) {
		return nil
	}
	return &one
}
