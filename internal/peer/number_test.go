// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Its number is another process's by the time that it is checked again.
func TestANumberThatIsUsedAgain(t *testing.T) {
	ways(t, func(t *testing.T, a attempts) {
		e := connect(t, "PEER_PASS=1")
		p, err := of(e.conn, a)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		e.die(t)
		again(t, p.PID)
		if err := p.Check(); !errors.Is(err, ErrGone) {
			t.Errorf("another process has its number, and it counts as the same: %v", err)
		}
	})
}

// Its number is another process's by the time that it is looked at.
func TestANumberThatIsUsedAgainBeforeItIsLookedAt(t *testing.T) {
	ways(t, func(t *testing.T, a attempts) {
		e := connect(t, "PEER_PASS=1")
		a.afterCred = func() {
			e.die(t)
			again(t, e.cmd.Process.Pid)
		}
		if p, err := of(e.conn, a); !errors.Is(err, ErrGone) {
			t.Errorf("%+v %v", p, err)
		}
	})
}

// Its number is another process's before anything is known. Where the kernel knows the peer
// by its number alone, that process looks like the peer: but it has not got the socket, and
// who has it can not answer in its name.
func TestANumberThatIsUsedAgainAtOnce(t *testing.T) {
	ways(t, func(t *testing.T, a attempts) {
		e := connect(t, "PEER_PASS=1")
		e.die(t)
		again(t, e.cmd.Process.Pid)
		p, err := of(e.conn, a)
		if errors.Is(err, ErrGone) {
			return
		}
		if err != nil || !strings.HasSuffix(t.Name(), "by_number") {
			t.Fatalf("%+v %v", p, err)
		}
		defer p.Close()
		if sender := e.sender(t); sender <= 0 || sender == p.PID {
			t.Errorf("process %d answers, want another one than %d", sender, p.PID)
		}
	})
}

// sender asks for an answer, and returns who gives it.
func (e *end) sender(t *testing.T) int {
	t.Helper()
	raw, err := e.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err == nil {
		_, err = e.conn.Write([]byte{'?'})
	}
	if err != nil {
		t.Fatal(err)
	}
	data, more := make([]byte, 1), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	_, n, _, _, err := e.conn.ReadMsgUnix(data, more)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(more[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages: %v", len(messages), err)
	}
	cred, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

// again makes a process of that number, which stays until the test ends.
func again(t *testing.T, pid int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	child, errno := cloneAs(pid, int(r.Fd()))
	_ = r.Close()
	if errno == unix.EPERM || errno == unix.ENOSYS {
		_ = w.Close()
		t.Skipf("SKIPPED, a process's number is used again: needs root and Linux 5.5, to choose it: %v", errno)
	}
	if errno != 0 || child != pid {
		t.Fatalf("made process %d, want %d: %v", child, pid, errno)
	}
	t.Cleanup(func() {
		_ = w.Close()
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
}

// cloneAs makes a copy of this process with a number of our choice (clone(2), set_tid),
// which has nothing but fd and stays until that ends. Of Go's runtime only one thread is
// left in it: it makes system calls, and nothing else.
//
//go:norace
//go:noinline
func cloneAs(pid, fd int) (int, unix.Errno) {
	tid := int32(pid)
	args := [11]uint64{4: uint64(unix.SIGCHLD), 8: uint64(uintptr(unsafe.Pointer(&tid))), 9: 1}
	var b [1]byte
	child, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 || child != 0 {
		return int(child), errno
	}
	_, _, _ = unix.RawSyscall(unix.SYS_DUP3, uintptr(fd), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 1, uintptr(^uint32(0)), 0)
	_, _, _ = unix.RawSyscall(unix.SYS_READ, 0, uintptr(unsafe.Pointer(&b)), 1)
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
