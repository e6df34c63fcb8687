// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the other end.
func TestMain(m *testing.M) {
	if path := os.Getenv("PEER_CONNECT"); path != "" {
		other(path)
		return
	}
	if os.Getenv("PEER_ECHO") != "" { // until we close our end
		f := os.NewFile(3, "socket")
		_, _ = io.Copy(f, f)
		return
	}
	os.Exit(m.Run())
}

// other connects, says so, and stays until its input ends.
func other(path string) {
	var local *net.UnixAddr
	if name := os.Getenv("PEER_NAME"); name != "" {
		local = &net.UnixAddr{Net: "unix", Name: name}
	}
	c, err := net.DialUnix("unix", local, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv("PEER_PASS") != "" { // the socket outlives this process
		f, _ := c.File()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.ExtraFiles = []string{"PEER_ECHO=1"}, []*os.File{f}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("connected")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

type end struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	conn *net.UnixConn
}

// connect has another process connect, and returns our end.
func connect(t *testing.T, env ...string) *end {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{"PEER_CONNECT=" + path}, env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &end{cmd: cmd, in: in}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "connected\n" {
		t.Fatalf("%q %v", line, err)
	}
	if e.conn, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.conn.Close() })
	return e
}

// die ends the other process, but not who has the socket from it.
func (e *end) die(t *testing.T) {
	t.Helper()
	if _, err := e.in.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// ways are those of kernels with SO_PEERPIDFD and without.
func ways(t *testing.T, f func(t *testing.T, a attempts)) {
	without := ofKernel()
	without.pidfd = func(int) (int, error) { return -1, unix.ENOPROTOOPT }
	t.Run("by number", func(t *testing.T) { f(t, without) })
	t.Run("by socket", func(t *testing.T) {
		raw, err := connect(t).conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			var pidfd int
			if pidfd, err = peerPidfd(int(fd)); err == nil {
				_ = unix.Close(pidfd)
			}
		})
		if errors.Is(err, unix.ENOPROTOOPT) {
			t.Skip("SKIPPED, peers known by their sockets: needs Linux 6.5")
		}
		f(t, ofKernel())
	})
}

func TestOf(t *testing.T) {
	ways(t, func(t *testing.T, a attempts) {
		name := fmt.Sprintf("@%x/unit/x.service/k", os.Getpid())
		before := time.Now().Add(-time.Second / userHZ)
		e := connect(t, "PEER_NAME="+name)
		p, err := of(e.conn, a)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		start, err := startOf("/proc", e.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if p.PID != e.cmd.Process.Pid || int(p.UID) != os.Geteuid() || int(p.GID) != os.Getegid() || p.Start != start || p.Name != name {
			t.Errorf("%+v, want process %d started at %d, called %s", p, e.cmd.Process.Pid, start, name)
		}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		if b := p.Began(); b.Before(before) || b.After(time.Now()) {
			t.Errorf("began at %v, which is not after %v", b, before)
		}
		e.die(t)
		if err := p.Check(); !errors.Is(err, ErrGone) {
			t.Errorf("after its end: %v", err)
		}
	})
}

// Who listens is known, too.
func TestOfAListener(t *testing.T) {
	e := connect(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := Of(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID != os.Getpid() || e.cmd.Process.Pid == p.PID {
		t.Errorf("%+v", p)
	}
}

// A process connects, gives the socket to another one and ends: nobody is there.
func TestAPeerThatIsGone(t *testing.T) {
	ways(t, func(t *testing.T, a attempts) {
		e := connect(t, "PEER_PASS=1")
		e.die(t)
		if p, err := of(e.conn, a); !errors.Is(err, ErrGone) {
			t.Errorf("%+v %v", p, err)
		}
	})
}

// The unit of a process without one, and of this one, whatever it is, are no guess.
func TestUnitOfThisProcess(t *testing.T) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if errors.Is(err, syscall.ENOENT) {
		t.Skip("SKIPPED, this process's own unit: needs cgroups")
	}
	if err != nil {
		t.Fatal(err)
	}
	e := connect(t)
	p, err := Of(e.conn)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Unit != UnitOf(string(b)) || p.Name != "" {
		t.Errorf("%q called %q, want that of %q without a name", p.Unit, p.Name, b)
	}
}
