// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden makes this process undumpable: no core file, no ptrace, no /proc/PID/mem
// for anyone without CAP_SYS_PTRACE (PR_SET_DUMPABLE in prctl(2)).
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making this process undumpable: %w", err)
	}
	return limitCore()
}

// limitCore sets RLIMIT_CORE to 1 byte, soft and hard, for this process and what
// it starts. With 0 the kernel still runs a core handler behind a pipe, with 1 it
// does not (core(5)). Where the hard limit is 0 already and we may not raise it,
// that stays.
func limitCore() error {
	one := unix.Rlimit{Cur: 1, Max: 1}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &now); err == nil && now == one {
		return nil
	}
	err := unix.Setrlimit(unix.RLIMIT_CORE, &one)
	if errors.Is(err, unix.EPERM) && now.Max == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("limiting core dumps: %w", err)
	}
	return nil
}
