// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors searches what no path leads to: memfds and deleted files that a
// process still has open, each once. Memory in which a virtual machine's guest
// lives is searched too if it is a memfd; holes are skipped.
func (s *Search) Descriptors(ctx context.Context) error {
	pids, err := numbers("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	f := newFileReader(s, DefaultMaxFile)
	defer f.close()
	seen := map[inode]bool{}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := numbers(dir)
		s.failed("descriptors", dir, err)
		for _, n := range fds {
			path := fmt.Sprintf("%s/%d", dir, n)
			if target, err := os.Readlink(path); err == nil && strings.HasSuffix(target, " (deleted)") {
				f.descriptor(pid, path, strings.TrimSuffix(target, " (deleted)"), seen)
			}
		}
	}
	return nil
}

// descriptor searches one open file through /proc.
func (f *fileReader) descriptor(pid int, path, target string, seen map[inode]bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || seen[inode{st.Dev, st.Ino}] {
		f.s.failed("descriptor", target, err)
		return
	}
	seen[inode{st.Dev, st.Ino}] = true
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		f.s.failed("descriptor", target, err)
		return
	}
	defer unix.Close(fd)
	f.content(fd, Place{Kind: Descriptor, PID: pid, Exe: exe(pid), Path: target})
	f.count.Descriptors++
}
