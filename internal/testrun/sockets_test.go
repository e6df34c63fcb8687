// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one that a process has open.
type socket struct {
	inode, name string // the name is empty for one that has none
	listens     bool
}

// accepts is __SO_ACCEPTCON of linux/net.h, as /proc/net/unix shows it.
const accepts = 0x10000

// unixSockets are all of this host's, by their inodes.
func unixSockets(t *testing.T) map[string]socket {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]socket{}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line) // Num RefCount Protocol Flags Type St Inode Path
		if len(f) < 7 {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 64)
		if err != nil {
			continue // the heading
		}
		all[f[6]] = socket{inode: f[6], name: strings.Join(f[7:], " "), listens: flags&accepts != 0}
	}
	return all
}

// socketsOf are the unix sockets of a process. One of any other family is an error:
// what it leads to is not known here.
func socketsOf(t *testing.T, what string, pid int) []socket {
	t.Helper()
	known := unixSockets(t)
	var found []socket
	for _, fd := range descriptors(t, pid) {
		target, err := os.Readlink(proc(pid, "fd/"+fd))
		inode, ok := strings.CutPrefix(target, "socket:[")
		if err != nil || !ok {
			continue
		}
		s, ok := known[strings.TrimSuffix(inode, "]")]
		if !ok {
			t.Errorf("the %s has a socket that is no unix socket: descriptor %s, %s", what, fd, target)
			continue
		}
		s.name = resolved(t, s.name, pid)
		found = append(found, s)
	}
	if len(found) == 0 {
		t.Errorf("the %s has no socket at all: this shows nothing", what)
	}
	return found
}

// resolved is a name as others know it: a process may have made the socket in a
// directory that it has open.
func resolved(t *testing.T, name string, pid int) string {
	t.Helper()
	rest, ok := strings.CutPrefix(name, "/proc/self/")
	if !ok {
		return name
	}
	dir, err := os.Readlink(proc(pid, filepath.Dir(rest)))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, filepath.Base(rest))
}

// nobodyConnects: no name that a socket of these processes has, or had, leads there
// for another VM's user; and nobody at all who gets through, as the VM's own user may
// to its vsock, is answered there what a hypervisor knows.
func nobodyConnects(t *testing.T, h *host, pids map[string]int, other, itself *attacker) {
	t.Helper()
	root := newAttacker(t, 0, 0)
	wantControls(t, h, other)
	wantControls(t, h, itself)
	for what, pid := range pids {
		for _, s := range socketsOf(t, what, pid) {
			if s.name == "" {
				continue // it never had one
			}
			got := map[string]string{
				"another VM's user": other.try(t, s.name, "connect"),
				"the VM's own user": itself.try(t, s.name, "ask"),
				"root":              root.try(t, s.name, "ask"),
			}
			t.Logf("the %s has the socket %q, listening: %v; %v", what, s.name, s.listens, got)
			for who, how := range got {
				if !strings.HasPrefix(how, "refused: ") && !strings.HasPrefix(how, "failed: ") {
					t.Errorf("%s got through to %s of the %s: %s", who, s.name, what, how)
				}
			}
		}
	}
}

// wantControls: the same attempt gets through to a socket that is open to all, with
// a name in the file system and without.
func wantControls(t *testing.T, h *host, a *attacker) {
	t.Helper()
	for _, name := range []string{filepath.Join(h.dir, "control"), "@" + h.name + "-control"} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		if name[0] == '/' {
			if err := os.Chmod(name, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.try(t, name, "connect"); got != "done" {
			t.Errorf("a socket that is open to all: %s", got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// onSockets is what may be tried on a unix socket by its name, "@…" for an abstract one.
func onSockets() map[string]func(name string) error {
	return map[string]func(string) error{
		"connect": func(name string) error {
			c, err := net.DialTimeout("unix", name, 10*time.Second)
			if err != nil {
				return dialError(err)
			}
			return c.Close()
		},
		"ask": func(name string) error {
			c, err := net.DialTimeout("unix", name, 10*time.Second)
			if err != nil {
				return dialError(err)
			}
			defer c.Close()
			// As cloud-hypervisor's API has it; who speaks anything else hangs up.
			if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return err
			}
			if _, err := io.WriteString(c, "GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				return err
			}
			answer := make([]byte, 4096)
			n, err := c.Read(answer)
			if strings.HasPrefix(string(answer[:n]), "HTTP/") {
				return nil
			}
			return fmt.Errorf("connected, and not answered: %w", err)
		},
	}
}

// dialError says what a refusal looks like: the system's own error.
func dialError(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("%w", errno)
	}
	return fmt.Errorf("%w: %w", fs.ErrInvalid, err)
}
