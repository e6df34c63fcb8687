// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startField is the place of a process's start time in /proc/PID/stat, counted
// from the state, which follows the command's name; proc_pid_stat(5) field 22.
const startField = 22 - 3

// startOf is when a process started, in clock ticks after the host's boot.
func startOf(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStart(stat)
}

// parseStart: the command's name is in parentheses and may hold anything, others
// of them too.
func parseStart(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) <= startField {
		return 0, errors.New("/proc/PID/stat has another form than proc_pid_stat(5)")
	}
	return strconv.ParseUint(fields[startField], 10, 64)
}

// bootID is the host's current boot.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// errEnded is a process that has ended; its number may be another's by now.
var errEnded = errors.New("has ended")

// Handle holds one process: what is done with it never reaches another one.
type Handle struct {
	pid int
	f   *os.File // a pidfd that does not block, so that the runtime waits for it
	raw syscall.RawConn
}

// open takes hold of the process. The start time is read again after that: what
// the number stood for before may have ended, and the handle would be another's.
func (p Process) open() (*Handle, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errEnded
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	h := &Handle{pid: p.PID, f: os.NewFile(uintptr(fd), "pidfd")}
	if h.raw, err = h.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	start, err := startOf(p.PID)
	switch {
	case err == nil && p.Start != 0 && start != p.Start:
		err = errEnded
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		err = nil // ended just now, or hidden from us: the lock tells
	}
	if err == nil && h.Ended() {
		err = errEnded
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Signal sends a signal. It returns [os.ErrProcessDone] when the process has ended.
func (h *Handle) Signal(s syscall.Signal) error {
	var err error
	if cerr := h.raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) }); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// Ended reports whether the process has ended.
func (h *Handle) Ended() bool {
	var ended bool
	err := h.raw.Control(func(fd uintptr) { ended = readable(fd) })
	return err == nil && ended
}

// Wait returns when the process has ended, or with the context's error.
func (h *Handle) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.f.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			_ = h.f.SetReadDeadline(time.Time{})
		}
	}()
	if err := h.raw.Read(readable); err != nil && ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return fmt.Errorf("waiting for process %d: %w", h.pid, err)
	}
	return nil
}

// Close lets go of the process.
func (h *Handle) Close() error { return h.f.Close() }

func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// Alive reports whether the process runs. Of one that this user may not see it
// says so as long as there is one of that number.
func (p Process) Alive() bool {
	h, err := p.open()
	if err != nil {
		return !errors.Is(err, errEnded)
	}
	return h.Close() == nil
}
