// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// self is what a started program finds about itself.
type self struct {
	Args, Env []string
	Files     map[string]string // descriptor → what it is
	Dir       string
	Status    map[string]string // lines of /proc/self/status
	Core      unix.Rlimit
	PID, SID  int
}

// playReport writes what it finds to descriptor 3.
func playReport() error {
	out := os.NewFile(3, "report")
	s := self{Args: os.Args, Env: os.Environ(), Files: map[string]string{}, Status: map[string]string{}, PID: os.Getpid()}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range list {
		// The directory itself and what the Go runtime opens are not inherited.
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "/sys/fs/cgroup/") && !strings.HasPrefix(target, "anon_inode:") {
			s.Files[e.Name()] = target
		}
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		s.Status[key] = strings.Join(strings.Fields(value), " ")
	}
	if s.Dir, err = os.Getwd(); err != nil {
		return err
	}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &s.Core); err != nil {
		return err
	}
	if s.SID, err = unix.Getsid(0); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(s)
}
