// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// transcript is what a process says. Whoever waits is told of every piece.
type transcript struct {
	mu   sync.Mutex // guards what follows
	b    bytes.Buffer
	more chan struct{} // closed with the next piece
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return len(p), nil
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// has reports whether text was said, and if not returns what tells of more.
func (s *transcript) has(text string) (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return strings.Contains(s.b.String(), text), s.more
}

// running is a process of the program.
type running struct {
	*exec.Cmd
	out, err transcript
	ended    chan struct{}
}

// start starts a command whose output is kept. It is gone when the test ends.
func start(t *testing.T, c *exec.Cmd) *running {
	t.Helper()
	r := &running{Cmd: c, ended: make(chan struct{})}
	if c.Stdout == nil {
		c.Stdout = &r.out
	}
	c.Stderr = &r.err
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		_ = c.Wait() // how it ended is in ProcessState
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-r.ended
	})
	return r
}

// await waits until one of the texts was said, or the process ended.
func (r *running) await(t *testing.T, s *transcript, text string) {
	t.Helper()
	late := time.After(patience)
	for {
		said, more := s.has(text)
		if said {
			return
		}
		select {
		case <-more:
		case <-r.ended:
			if said, _ := s.has(text); !said {
				t.Fatalf("it ended (%v) before it said %q: %s\n%s", r.ProcessState, text, r.out.String(), r.err.String())
			}
		case <-late:
			t.Fatalf("it never said %q: %s\n%s", text, r.out.String(), r.err.String())
		}
	}
}

// awaitGuest waits until the guest has reported what it got.
func (r *running) awaitGuest(t *testing.T) {
	t.Helper()
	r.await(t, &r.out, probe.Last)
}

// end waits for the end and returns the exit status, -1 for a signal.
func (r *running) end(t *testing.T) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatalf("process %d does not end: %s\n%s", r.Process.Pid, r.out.String(), r.err.String())
	}
	return r.ProcessState.ExitCode()
}

// stop stops it as a user would, if somebody has not done that already.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if err := r.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if code := r.end(t); code != 0 {
		t.Errorf("stopped, it exits %d: %s", code, r.err.String())
	}
}

// insist stops it as someone does who presses Ctrl-C again and again, whether
// the guest listens or not.
func (r *running) insist(t *testing.T) {
	t.Helper()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for {
		_ = r.Process.Signal(syscall.SIGTERM) // it may have ended just now
		select {
		case <-again.C:
		case <-r.ended:
			if code := r.ProcessState.ExitCode(); code != 0 {
				t.Errorf("stopped, it exits %d (%v): %s", code, r.ProcessState, r.err.String())
			}
			return
		case <-late:
			t.Fatalf("it does not end: %s", r.err.String())
		}
	}
}

// of lists the processes on whose command line text stands.
func of(text string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, []byte(text)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone waits until no process of this VM is left. A process that was killed may
// take a moment, one that lives on is a failure.
func (h *host) gone(t *testing.T) {
	t.Helper()
	for _, pid := range of(h.name) {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := poll(fd, 20*time.Second)
		_ = unix.Close(fd)
		if err != nil || n == 0 {
			t.Errorf("process %d is left running (%v)", pid, err)
		}
	}
	if left := of(h.name); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

func poll(fd int, patience time.Duration) (int, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// clean says that neither process nor runtime directory of the VM is left.
func (h *host) clean(t *testing.T) {
	t.Helper()
	h.gone(t)
	for _, dir := range []string{h.runtime(), h.locked()} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			left, _ := os.ReadDir(dir)
			t.Errorf("%s is left: %v, %v", dir, left, err)
		}
	}
}
