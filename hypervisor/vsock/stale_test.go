// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRemoveStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	if err := RemoveStale(path); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a VMM that is killed
	var inUse *InUseError
	if err := RemoveStale(path); !errors.As(err, &inUse) || inUse.Hint() == "" {
		t.Errorf("somebody listens: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(path); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, _ := os.ReadFile(path); string(b) != "data" {
		t.Error("the file is gone")
	}
}

// The socket is reached by the directory that was opened, not by its path again: so a
// path that is longer than a unix socket's can be does not matter.
func TestRemoveStaleByDescriptor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: procPath(d) + "/v", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	path := filepath.Join(dir, "v")
	var inUse *InUseError
	if err := RemoveStale(path); !errors.As(err, &inUse) {
		t.Errorf("somebody listens: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("v", link); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(link); err == nil {
		t.Error("a link was taken for a socket")
	}
	if err := RemoveStale(path); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := RemoveStale(filepath.Join(dir, "none", "v")); err != nil {
		t.Errorf("no directory: %v", err)
	}
}
