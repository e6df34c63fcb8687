// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	vmUser    = 65527 // a VM's user, whom nothing else belongs to
	unitChild = "VMCRED_TEST_UNIT"
)

// systemRoot is a root as /run/vmcred is: open to be entered.
func systemRoot(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("", "state")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	root := filepath.Join(base, rootName)
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	return root
}

// give makes a directory and all in it the VM's user's, as systemd does at each
// start of its unit.
func give(t *testing.T, dir string) {
	t.Helper()
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, vmUser, vmUser))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, no directory changed hands: needs root")
	}
}

// asUnit tries a start by the VM's unit: "started", or the error.
func asUnit(t *testing.T, root string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestStartsAsAUnit$")
	cmd.Dir = "/"
	cmd.Env = []string{unitChild + "=" + root, "RUNTIME_DIRECTORY=" + filepath.Join(root, "a"), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR")}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: vmUser, Gid: vmUser}}
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v:\n%s", err, &said)
	}
	line, _, _ := strings.Cut(said.String(), "\n")
	return line
}

// TestStartsAsAUnit is the other side of asUnit.
func TestStartsAsAUnit(t *testing.T) {
	root := os.Getenv(unitChild)
	if root == "" {
		return // asUnit's callers run it
	}
	c, err := Acquire(root, "a")
	if err != nil {
		_, _ = os.Stdout.WriteString(err.Error() + "\n")
		return
	}
	left, err := os.ReadDir(c.Dir())
	if err != nil || len(left) != 1 || left[0].Name() != lockName {
		t.Errorf("after acquire: %v %v", left, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, _ = os.Stdout.WriteString("started\n")
}

// seen is a directory's owner, mode and contents.
func seen(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		out = append(out, path)
		if err = errors.Join(err, unix.Lstat(path, &st)); err == nil {
			out = append(out, fs.FileMode(st.Mode).String(), string(rune('0'+st.Uid%10)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The unit of a VM that runs by hand is started: systemd makes the directory its
// user's, the unit is refused, and so is the next one.
func TestTakenByTheUnitWhileItRuns(t *testing.T) {
	needsRoot(t)
	root := systemRoot(t)
	gate := filepath.Join(root, "a")
	c, err := acquireAt(root, "a", true, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(sample()); err != nil {
		t.Fatal(err)
	}
	give(t, gate)
	// All that its user can do there.
	forged := filepath.Join(gate, recordName)
	err = errors.Join(os.WriteFile(forged, []byte(`{"version":1,"runner":{"pid":1}}`), 0o600),
		os.WriteFile(filepath.Join(gate, lockName), []byte("1\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	give(t, gate)
	before := seen(t, gate)
	for range 2 {
		if got := asUnit(t, root); !strings.HasSuffix(got, "VM a runs already") {
			t.Errorf("a start by the unit: %s", got)
		}
	}
	var busy *BusyError
	if _, err := acquireAt(root, "a", true, false); !errors.As(err, &busy) || busy.PID != os.Getpid() || busy.ByUnit {
		t.Errorf("a start by hand: %v", err)
	}
	if f := read1(t, root); f.Dead != "" || f.Runner != Self() || f.Dir != c.Dir() {
		t.Errorf("the record: %+v", f)
	}
	if pid, held, err := Held(root, "a"); err != nil || !held || pid != os.Getpid() {
		t.Errorf("held: %d %v %v", pid, held, err)
	}
	if names, err := Names(root); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("names: %v %v", names, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if after := seen(t, gate); !slices.Equal(after, before) {
		t.Errorf("what is the unit's was %q and is %q", before, after)
	}
	if _, err := os.Lstat(c.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run's own directory is left: %v", err)
	}
	if got := asUnit(t, root); got != "started" {
		t.Errorf("a start by the unit after the end: %s", got)
	}
	// The empty directory is systemd's.
	if c, err = acquireAt(root, "a", true, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(gate); err != nil {
		t.Errorf("the unit's directory was removed: %v", err)
	}
}

// The unit runs, and root starts the VM by hand.
func TestByHandWhileTheUnitRuns(t *testing.T) {
	needsRoot(t)
	root := systemRoot(t)
	gate := filepath.Join(root, "a")
	c, err := acquireAt(root, "a", false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	give(t, gate)
	before := seen(t, gate)
	var busy *BusyError
	if _, err := acquireAt(root, "a", true, false); !errors.As(err, &busy) || busy.PID != 0 || !busy.ByUnit {
		t.Errorf("%v", err)
	} else if !strings.Contains(busy.Hint(), "systemctl stop") {
		t.Errorf("hint: %s", busy.Hint())
	}
	if after := seen(t, gate); !slices.Equal(after, before) {
		t.Errorf("the unit's directory was %q and is %q", before, after)
	}
	if _, err := os.Lstat(filepath.Join(root, plainName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory was made for nothing: %v", err)
	}
}

// What a unit left is in nobody's way, whatever its user put there.
func TestAfterTheUnit(t *testing.T) {
	root := systemRoot(t)
	gate := filepath.Join(root, "a")
	spoil := func() {
		deep := filepath.Join(gate, "closed", "deep")
		err := errors.Join(os.MkdirAll(deep, 0o700), os.Symlink(gate, filepath.Join(deep, "link")), unix.Mkfifo(filepath.Join(gate, lockName), 0))
		if err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			give(t, gate)
		}
		if err := errors.Join(os.Chmod(deep, 0), os.Chmod(filepath.Dir(deep), 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(gate, 0o700); err != nil {
		t.Fatal(err)
	}
	spoil()
	if got := asUnit(t, root); got != "started" {
		t.Errorf("a start by the unit: %s", got)
	}
	if left, err := os.ReadDir(gate); err != nil || len(left) != 0 {
		t.Errorf("the unit left %v, %v; want the directory alone", left, err)
	}
	needsRoot(t)
	spoil()
	before := seen(t, gate)
	var untrusted *UntrustedError
	if _, err := acquireAt(root, "a", false, false); !errors.As(err, &untrusted) {
		t.Errorf("another user's directory is taken as ours: %v", err)
	}
	if _, err := Read(root, "a"); !errors.As(err, &untrusted) {
		t.Errorf("what is in another user's directory is believed: %v", err)
	}
	c, err := acquireAt(root, "a", true, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if after := seen(t, gate); !slices.Equal(after, before) {
		t.Errorf("the unit's directory was %q and is %q", before, after)
	}
}

// Nobody but root may have made the directory of root's plain runs.
func TestPlainRunsOfOthers(t *testing.T) {
	needsRoot(t)
	for what, put := range map[string]func(path string) error{
		"a link":    func(path string) error { return os.Symlink(t.TempDir(), path) },
		"another's": func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, vmUser, -1)) },
	} {
		root := systemRoot(t)
		if err := put(filepath.Join(root, plainName)); err != nil {
			t.Fatal(err)
		}
		var untrusted *UntrustedError
		if _, err := acquireAt(root, "a", true, false); !errors.As(err, &untrusted) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "a")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the directory is left: %v", what, err)
		}
	}
}
