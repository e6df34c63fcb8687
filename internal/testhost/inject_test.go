// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// injection is a process that is made to send signal 0 to each of the others.
type injection struct {
	Into int
	To   map[string]int
}

// injectAll has a process make kill(2) calls, and returns how each ended: only
// so do we see what its own Landlock domain allows.
func injectAll(in []byte) (any, error) {
	var i injection
	if err := json.Unmarshal(in, &i); err != nil {
		return nil, err
	}
	runtime.LockOSThread() // ptrace(2) knows threads
	defer runtime.UnlockOSThread()
	ended := map[string]string{}
	for name, pid := range i.To {
		errno, err := inject(i.Into, unix.SYS_KILL, uint64(pid), 0)
		for try := 0; errors.Is(err, errBusy) && try < 1000; try++ {
			errno, err = inject(i.Into, unix.SYS_KILL, uint64(pid), 0)
		}
		if err != nil {
			return nil, err
		}
		ended[name] = gotThrough
		if errno != 0 {
			ended[name] = errno.Error()
		}
	}
	return ended, nil
}

var errBusy = errors.New("it does not wait in a system call")

// inject makes the main thread of a process do one system call. It waits inside
// one of its own, which is started again afterwards.
func inject(pid int, call, a, b uint64) (unix.Errno, error) {
	if err := unix.PtraceSeize(pid); err != nil {
		return 0, fmt.Errorf("seize: %w", err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return 0, fmt.Errorf("interrupt: %w", err)
	}
	if err := stopped(pid); err != nil {
		return 0, err
	}
	var old unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &old); err != nil {
		return 0, fmt.Errorf("registers: %w", err)
	}
	// An instruction "syscall" is right before where it stands.
	code := make([]byte, 2)
	if _, err := unix.PtracePeekText(pid, uintptr(old.Rip-2), code); err != nil || code[0] != 0x0f || code[1] != 0x05 {
		return 0, errors.Join(errBusy, err)
	}
	regs := old
	regs.Rip, regs.Rax, regs.Orig_rax, regs.Rdi, regs.Rsi = old.Rip-2, call, ^uint64(0), a, b
	if err := unix.PtraceSetRegs(pid, &regs); err != nil {
		return 0, fmt.Errorf("registers: %w", err)
	}
	if err := errors.Join(unix.PtraceSingleStep(pid), stopped(pid)); err != nil {
		return 0, err
	}
	err := unix.PtraceGetRegs(pid, &regs)
	if err := errors.Join(err, unix.PtraceSetRegs(pid, &old)); err != nil {
		return 0, fmt.Errorf("registers: %w", err)
	}
	if n := int64(regs.Rax); n < 0 {
		return unix.Errno(-n), nil
	}
	return 0, nil
}

func stopped(pid int) error {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case !status.Stopped():
			return fmt.Errorf("it did not stop: %#x", status)
		default:
			return nil
		}
	}
}
