// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// playWriter says of each directory whether a file can be read and one made there.
func playWriter(dirs []string) error {
	for _, dir := range dirs {
		_, rerr := os.ReadFile(filepath.Join(dir, "file"))
		werr := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600)
		fmt.Printf("%s read %v, write %v\n", filepath.Base(dir), rerr == nil, werr == nil)
	}
	return nil
}

// tree is a directory with a file, and a file system of its own below it.
func tree(t *testing.T) (dir, below string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-readonly-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	below = filepath.Join(dir, "below")
	if err := errors.Join(os.Chmod(dir, 0o777), os.Mkdir(below, 0o777)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("vmcred-test", below, "tmpfs", unix.MS_NOEXEC, "mode=0777,size=64k"); err != nil {
		t.Skipf("SKIPPED, nothing was made read-only: needs to mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	for _, d := range []string{dir, below} {
		if err := os.WriteFile(filepath.Join(d, "file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, below
}

func writer(t *testing.T, c *Command, dirs ...string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Path, c.Env, c.Stdout, c.Stderr = "/proc/self/exe", []string{partEnv + "=writer " + strings.Join(dirs, " ")}, w, w
	p, err := c.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	return strings.ReplaceAll(strings.TrimSpace(string(out)), filepath.Base(dirs[0]), "top")
}

func TestReadOnly(t *testing.T) {
	needRoot(t)
	dir, below := tree(t)
	for _, id := range []*Identity{nil, {UID: 65533, GID: 65533}} {
		got := writer(t, &Command{Identity: id}, dir, below)
		if want := "top read true, write true\nbelow read true, write true"; got != want {
			t.Fatalf("without: %q", got)
		}
		_ = errors.Join(os.Remove(dir+"/new"), os.Remove(below+"/new"))
		got = writer(t, &Command{Identity: id, ReadOnly: dir, Mounts: true}, dir, below)
		if want := "top read true, write false\nbelow read true, write false"; got != want {
			t.Errorf("read-only as %v: %q, want %q", id, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Errorf("it is read-only for us, too: %v", err)
	}
}

// TestReadOnlyOfOldKernels: what is mounted below is left out there.
func TestReadOnlyOfOldKernels(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/proc/self/ns/mnt"); err != nil {
		t.Skip("SKIPPED: needs mount namespaces")
	}
	dir, below := tree(t)
	old, err := readOnlyFor(dir, false, unix.ST_NOSUID|unix.ST_RELATIME)
	if err != nil {
		t.Fatal(err)
	}
	if old.remount != unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_RELATIME {
		t.Errorf("flags %#x", old.remount)
	}
	got := writer(t, &Command{ReadOnly: dir, oldReadOnly: old}, dir, below)
	if want := "top read true, write false\nbelow read false, write false"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReadOnlyRefused(t *testing.T) {
	for what, c := range map[string]*Command{
		"relative": {Path: "/bin/true", ReadOnly: "x"},
		"missing":  {Path: "/bin/true", ReadOnly: "/nonexistent/x"},
	} {
		p, err := c.Start()
		if err == nil {
			_ = p.Kill()
			t.Errorf("%s: it was started", what)
		}
	}
	if os.Geteuid() == 0 {
		return
	}
	_, err := (&Command{Path: "/bin/true", ReadOnly: t.TempDir()}).Start()
	var se *StartError
	if !errors.As(err, &se) || !strings.Contains(se.Hint(), "only root") {
		t.Errorf("got %v", err)
	}
}

// TestMountsAndLandlock: a domain without scopes would refuse the mounts.
func TestMountsAndLandlock(t *testing.T) {
	for abi, want := range map[int]bool{1: false, scopeABI - 1: false, scopeABI: true, scopeABI + 1: true} {
		if got := enters(abi, true); got != want {
			t.Errorf("ABI %d: %v", abi, got)
		}
		if !enters(abi, false) {
			t.Errorf("ABI %d: none for a process that does not mount", abi)
		}
	}
}
