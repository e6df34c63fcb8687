// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killChildren kills the children of a process of ours that has not been waited
// for. Its number is asked for again once there is a descriptor, so that no other
// process is meant.
func killChildren(pid int) {
	for _, child := range children(pid) {
		fd, err := unix.PidfdOpen(child, 0)
		if err != nil {
			continue
		}
		if slices.Contains(children(pid), child) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

// children are those of its first thread: see proc_pid_task(5).
func children(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for _, word := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(word); err == nil {
			out = append(out, n)
		}
	}
	return out
}
