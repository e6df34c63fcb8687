// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A VMM with the directory as a descriptor connects where the guest does; Close
// leaves nothing, also of what the VMM made.
func TestHost(t *testing.T) {
	dir := t.TempDir()
	h, err := Open(dir, nil, Ports{1234: func(c net.Conn) { _, _ = c.Write([]byte("hello")) }})
	if err != nil {
		t.Fatal(err)
	}
	fd := int(h.File().Fd())
	c, err := net.Dial("unix", Socket(fd)+"_1234")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := net.Dial("unix", Socket(fd)+"_1235"); err == nil {
		t.Error("a port nobody asked for is open")
	}
	if err := os.WriteFile(InDir(fd, "left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(Path(dir, "left")); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, dirName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A host that cannot be opened wholly is not open at all.
func TestHostThatCannotBe(t *testing.T) {
	if h, err := Open(filepath.Join(t.TempDir(), "none"), nil, nil); err == nil {
		t.Errorf("%+v", h)
	}
	var none *Host
	if none.File() != nil || none.Close() != nil {
		t.Error("no host has something")
	}
}
