// SPDX-License-Identifier: Apache-2.0

package vhostvsock

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

// The parts that the test binary plays as a daemon, by the guest's CID.
const (
	playDies    = 101 // complains and ends
	playLate    = 102 // binds, and listens when it may
	playLink    = 103 // a link to a socket of somebody else's
	playNothing = 104 // makes no socket
)

func TestMain(m *testing.M) {
	var cid int
	if _, err := fmt.Sscanf(strings.Join(os.Args[1:], " "), "--guest-cid=%d", &cid); err == nil {
		os.Exit(play(cid))
	}
	goleak.VerifyTestMain(m)
}

func play(part int) int {
	path := strings.TrimPrefix(os.Args[2], "--socket=")
	switch part {
	case playDies:
		fmt.Fprintln(os.Stderr, "no \x1b[31msuch thing\x07")
		return 1
	case playLink:
		if err := os.Symlink("elsewhere", path); err != nil {
			return 2
		}
	case playLate:
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil || unix.Bind(fd, &unix.SockaddrUnix{Name: path}) != nil {
			return 2
		}
		// Whoever connected before is refused, and must not have given up.
		if !await(strings.TrimSuffix(path, control) + "go") {
			return 3
		}
		if unix.Listen(fd, 1) != nil {
			return 2
		}
	}
	for {
		_ = unix.Pause()
	}
}

// await waits for a pipe to be opened and closed.
func await(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	_, err = f.Read(make([]byte, 1))
	return err != nil
}

// buffer is what was written by another goroutine.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// sockets is a directory of the VMM's user, as a VM has one.
func sockets(t *testing.T, id *launch.Identity) *os.File {
	t.Helper()
	path := t.TempDir()
	if id != nil {
		if err := os.Chown(path, int(id.UID), int(id.GID)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// options start that daemon.
func options(t *testing.T, path string, cid uint32, log *buffer) StartOptions {
	t.Helper()
	return StartOptions{
		Daemon: Daemon{Path: path}, CID: cid, Log: log, Dir: sockets(t, nil),
		Socket: func(fd int) string { return inDir(uintptr(fd), "vsock") },
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
