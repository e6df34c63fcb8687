// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/daemon"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// patience is for what takes milliseconds, on a machine that is busy.
const patience = 20 * time.Second

// buffer is a log that two goroutines use.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func started(t *testing.T, o Options, log *buffer, shares ...vm.Share) *Servers {
	t.Helper()
	s, err := Start(t.Context(), shares, StartOptions{Options: o, RunDir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Finish(0) })
	return s
}

// sandboxed waits until the daemon is in its sandbox, and returns the process there.
func sandboxed(t *testing.T, srv *server) int {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	poll(t, srv, func() bool {
		for _, child := range children(srv.PID()) {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", child))
			mounts, merr := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", child))
			// After the pivot its root is the shared directory and nothing else.
			if err == nil && merr == nil && ns != own && bytes.Count(mounts, []byte("\n")) <= 4 && len(mounts) > 0 {
				return true
			}
		}
		return false
	})
	return children(srv.PID())[0]
}

func poll(t *testing.T, srv *server, ok func() bool) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-srv.Done():
			t.Fatal(srv.fault())
		case <-late:
			t.Fatal("it never came")
		}
	}
}

func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := 0, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	}
	if n != 1 {
		t.Fatalf("process %d still runs (%v)", pid, err)
	}
}

// TestEndsWithTheVMM: it ends when the other side hangs up, and that is no fault.
func TestEndsWithTheVMM(t *testing.T) {
	var log buffer
	s := started(t, rust(t), &log, share(t))
	inner := sandboxed(t, s.running[0])
	conn, err := s.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if !daemon.Closed(s.running[0].Done(), patience) {
		t.Fatal("it stays")
	}
	gone(t, inner)
	if err := s.Fault(); err != nil {
		t.Error(err)
	}
	s.Finish(0)
	if log.String() != "" {
		t.Errorf("it says %q", log.String())
	}
}

// TestEndsWithTheRunner: also where that is killed, and no VMM was ever connected.
func TestEndsWithTheRunner(t *testing.T) {
	rust(t)
	runner := exec.Command("/proc/self/exe")
	runner.Env = []string{runnerEnv + "=" + open(t), "PATH=" + os.Getenv("PATH")}
	runner.Stderr = os.Stderr
	out, err := runner.StdoutPipe()
	if err == nil {
		err = runner.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = runner.Wait() }() // it was killed
	var pid int
	var dir string
	if _, err := fmt.Fscanln(out, &pid, &dir); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var inner []int
	for tick := time.NewTicker(5 * time.Millisecond); len(inner) == 0; <-tick.C {
		inner = children(pid)
	}
	if err := runner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	for _, p := range inner {
		gone(t, p)
	}
}

// TestFinishKills: also what nobody ever connected to, and what stands still.
func TestFinishKills(t *testing.T) {
	s := started(t, rust(t), &buffer{}, share(t), share(t))
	var pids []int
	for _, srv := range s.running {
		pids = append(pids, srv.PID(), sandboxed(t, srv))
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	dir := s.dir.Name()
	if s.Finish(0); s.Fault() != nil {
		t.Errorf("killed by us, and it is a fault: %v", s.Fault())
	}
	for _, pid := range pids {
		gone(t, pid)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", dir, err)
	}
}

// TestLost: a daemon that dies under a VM is told, with the share's name; one whose
// VM ends is not.
func TestLost(t *testing.T) {
	o := rust(t)
	for _, vmEnds := range []bool{false, true} {
		s := started(t, o, &buffer{}, share(t))
		vmm, lost := make(chan struct{}), make(chan error, 1)
		s.Watch(vmm, func(err error) { lost <- err })
		inner := sandboxed(t, s.running[0])
		if vmEnds {
			conn, err := s.Dial(0)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			<-s.running[0].Done()
			close(vmm)
			if s.Finish(patience); s.Fault() != nil {
				t.Error(s.Fault())
			}
			select {
			case err := <-lost:
				t.Errorf("the VM has ended, and: %v", err)
			default:
			}
			continue
		}
		if err := syscall.Kill(inner, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-lost:
			if !strings.Contains(err.Error(), "share data ended") {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("nobody was told")
		}
		close(vmm)
		if s.Finish(0); s.Fault() == nil {
			t.Error("no fault")
		}
	}
}

// TestCannotWrite: the process in the sandbox, whatever becomes of it, has the
// directory on a read-only mount. Only root can do that.
func TestCannotWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a read-only mount of its own needs root")
	}
	for what, o := range map[string]func(*testing.T) Options{"rust": rust, "legacy": legacy} {
		for _, user := range []string{"root", "nobody"} {
			t.Run(what+" as "+user, func(t *testing.T) {
				if what == "legacy" && user != "root" {
					t.Skip("SKIPPED: it runs as root only")
				}
				sh := share(t)
				sh.User = user
				s := started(t, o(t), &buffer{}, sh)
				if what == "legacy" { // it enters its sandbox when somebody is connected
					conn, err := s.Dial(0)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
				}
				mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", sandboxed(t, s.running[0])))
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(mounts)) {
					// Field 6 is the mount's own options (proc_pid_mountinfo(5)).
					if f := strings.Fields(line); f[4] == "/" && !slices.Contains(strings.Split(f[5], ","), "ro") {
						t.Errorf("it can be written: %s", line)
					}
				}
			})
		}
	}
}

// TestWhoMayConnect: the VMM's user, through the descriptor, and nobody by a path.
func TestWhoMayConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to be two users")
	}
	vmm, err := launch.Lookup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	runDir := filepath.Join(open(t), "run")
	if err := os.Mkdir(runDir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), []vm.Share{share(t)}, StartOptions{Options: rust(t), RunDir: runDir, VMM: vmm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Finish(0) })
	try := func(uid uint32, path func(fd int) string) error {
		c := &launch.Command{Path: "/proc/self/exe", Identity: &launch.Identity{UID: uid, GID: uid}}
		c.Env = []string{connectEnv + "=" + path(c.Donate("directory", s.Directory()))}
		p, err := c.Start()
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		if !p.State().Success() {
			return errors.New(p.State().String())
		}
		return nil
	}
	byPath := func(int) string { return filepath.Join(s.dir.Name(), socketName(0)) }
	byFD := func(fd int) string { return s.SocketPath(0, fd) }
	if try(vmm.UID, byPath) == nil {
		t.Error("the VMM's user may enter the runtime directory")
	}
	if try(65533, byFD) == nil {
		t.Error("another user may connect")
	}
	if err := try(vmm.UID, byFD); err != nil {
		t.Error("the VMM may not connect: ", err)
	}
}

// TestDialWaitsForNobody: another program's socket may be one that has its VM.
func TestDialWaitsForNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), []vm.Share{{Tag: "data", Socket: path}}, StartOptions{RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if flags, err := unix.FcntlInt(conn.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the VMM's end: flags %#x, %v", flags, err)
	}
	if _, err := s.Dial(0); err == nil || !strings.Contains(err.Error(), "takes no more connections") {
		t.Errorf("a second one: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	o := rust(t)
	sh := share(t)
	sh.Source += "/missing"
	_, err := Start(t.Context(), []vm.Share{sh}, StartOptions{Options: o, RunDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "share data: ") || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if os.Geteuid() == 0 {
		nobody, err := launch.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		_, err = Start(t.Context(), []vm.Share{share(t)}, StartOptions{Options: o, RunDir: t.TempDir(), VMM: nobody})
		if err == nil || !strings.Contains(err.Error(), "own user nobody") {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, []vm.Share{share(t)}, StartOptions{Options: o, RunDir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if s, err := Start(t.Context(), nil, StartOptions{}); s != nil || err != nil {
		t.Errorf("%v %v", s, err)
	}
	var none *Servers
	none.Watch(nil, nil)
	none.Finish(0)
	if none.Fault() != nil || none.Directory() != nil {
		t.Error("there is something")
	}
}
