// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/testtty"
)

// session is a console on a terminal, with this test as the VM and as the person.
type session struct {
	t    *testing.T
	ours *os.File // the person's end of the terminal
	tty  *os.File
	vm   net.Conn
	was  *unix.Termios
	end  chan error
	seen strings.Builder
}

func attached(t *testing.T, ctx context.Context) *session {
	t.Helper()
	ours, tty, err := testtty.Open()
	if err != nil {
		t.Fatal(err)
	}
	was, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	s := &session{t: t, ours: ours, tty: tty, vm: there, was: was, end: make(chan error, 1)}
	t.Cleanup(func() { _, _ = ours.Close(), tty.Close() })
	a := &app{stdin: tty, stdout: tty, stderr: tty}
	go func() {
		err := a.talk(ctx, "a", here)
		_ = here.Close()
		s.end <- err
	}()
	s.see("Ctrl-] leaves")
	return s
}

// see reads from the terminal until it has shown that.
func (s *session) see(text string) {
	s.t.Helper()
	for buf := make([]byte, 1024); !strings.Contains(s.seen.String(), text); {
		n, err := s.ours.Read(buf)
		if err != nil {
			s.t.Fatalf("%v before %q was shown: %q", err, text, s.seen.String())
		}
		s.seen.Write(buf[:n])
	}
}

// over waits for the end, after which the terminal is as it was.
func (s *session) over() {
	s.t.Helper()
	if err := <-s.end; err != nil {
		s.t.Error(err)
	}
	now, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	if err != nil || *now != *s.was {
		s.t.Errorf("the terminal is not as it was: %v\n%+v\n%+v", err, now, s.was)
	}
	s.see("left the console of a")
}

func (s *session) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.vm, text); err != nil {
		s.t.Fatal(err)
	}
}

func TestConsoleOnATerminalIsRaw(t *testing.T) {
	s := attached(t, t.Context())
	s.say("login: \x1b[?1049h\x1b]52;c;AAAA\a\x1b[6n$")
	s.see("login: \x1b[?1049h$")
	if _, err := io.WriteString(s.ours, "ls\x03\x1b[A\r\x1drest"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(s.vm, got); err != nil || string(got) != "ls\x03\x1b[A\r" {
		t.Errorf("the VM got %q %v", got, err)
	}
	s.over() // by the key
	if n, err := s.vm.Read(got); n > 0 || err == nil {
		t.Errorf("after the key that leaves: %q", got[:n])
	}
	seen := s.seen.String()
	if at := strings.Index(seen, "\x1b[?1049l"); at < 0 || at > strings.Index(seen, "left the console") {
		t.Errorf("the guest's screen stays: %q", seen)
	}
}

func TestConsoleEndsWithTheVM(t *testing.T) {
	s := attached(t, t.Context())
	s.say("bye")
	s.see("bye")
	_ = s.vm.Close()
	s.over()
}

func TestConsoleEndsAtASignal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := attached(t, ctx)
	s.say("x")
	s.see("x")
	cancel()
	s.over()
}

// A VM's user owns its unit's directory, and must not lead root elsewhere.
func TestConsoleFollowsNoLink(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(root, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := filepath.Join(dir, hypervisor.ConsoleSocket)
	if err := os.Symlink(filepath.Join(root, "other"), at); err != nil {
		t.Fatal(err)
	}
	if c, err := dialConsole(filepath.Join(root, "a")); err == nil {
		_ = c.Close()
		t.Error("a link was followed")
	}
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "other"), at); err != nil {
		t.Fatal(err)
	}
	c, err := dialConsole(filepath.Join(root, "a"))
	if err != nil {
		t.Fatalf("a socket: %v", err)
	}
	_ = c.Close()
	if os.Geteuid() == 0 {
		if err := os.Chown(at, 65527, -1); err != nil {
			t.Fatal(err)
		}
		if c, err := dialConsole(filepath.Join(root, "a")); err == nil {
			_ = c.Close()
			t.Error("another user's socket was taken")
		}
		// Where links to others' files can be made, one of root's sockets by another name.
		if err := errors.Join(os.Chown(dir, 65527, -1), os.Chown(at, 0, -1)); err != nil {
			t.Fatal(err)
		}
		if c, err := dialConsole(dir); err == nil {
			_ = c.Close()
			t.Error("root's own socket was taken")
		}
	}
}
