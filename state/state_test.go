// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func acquire(t *testing.T, root, name string) *Claim {
	t.Helper()
	c, err := Acquire(root, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSecondStartIsRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), "vmcred")
	c := acquire(t, root, "a")
	_, err := Acquire(root, "a")
	var busy *BusyError
	if !errors.As(err, &busy) || busy.PID != os.Getpid() {
		t.Fatalf("second start: %v, want busy with our pid", err)
	}
	other := acquire(t, root, "b")
	if err := errors.Join(other.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if err := acquire(t, root, "a").Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLeftoversAreCleared(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a")
	if err := os.MkdirAll(filepath.Join(dir, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"console.sock", "deep/x", "lock"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("99999999"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := acquire(t, root, "a")
	defer c.Close()
	left, err := os.ReadDir(c.Dir())
	if err != nil || len(left) != 1 || left[0].Name() != "lock" {
		t.Errorf("after acquire: %v %v, want the lock alone", left, err)
	}
}

func TestUntrustedDirectoriesAreRefused(t *testing.T) {
	var untrusted *UntrustedError
	root := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(root, "link"); !errors.As(err, &untrusted) {
		t.Errorf("a link as runtime directory: %v", err)
	}
	if err := os.Chmod(root, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(root, "a"); !errors.As(err, &untrusted) {
		t.Errorf("a root others can write: %v", err)
	}
}

// What is in a lock's place and none is removed, not followed and not written to.
func TestALockThatIsNone(t *testing.T) {
	target := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(target, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, put := range map[string]func(path string) error{
		"a link":        func(path string) error { return os.Symlink(target, path) },
		"a second name": func(path string) error { return os.Link(target, path) },
		"a pipe":        func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a directory":   func(path string) error { return os.MkdirAll(filepath.Join(path, "deep"), 0o700) },
		"closed":        func(path string) error { return os.WriteFile(path, nil, 0) },
	} {
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "a"), 0o700), put(filepath.Join(root, "a", lockName))); err != nil {
			t.Fatal(err)
		}
		c, err := Acquire(root, "a")
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if pid, held, err := Held(root, "a"); err != nil || !held || pid != os.Getpid() {
			t.Errorf("%s: held by %d, %v %v", what, pid, held, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, _ := os.ReadFile(target); string(b) != "keep" {
		t.Errorf("the link's target was changed: %q", b)
	}
}

// Many starters and stoppers at once: at no moment do two hold the same VM.
func TestOneHolderAtATime(t *testing.T) {
	for _, apart := range []bool{false, true} {
		oneHolder(t, apart)
	}
}

func oneHolder(t *testing.T, apart bool) {
	t.Helper()
	root := t.TempDir()
	var holders, got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 600 {
				c, err := acquireAt(root, "a", apart, false)
				var busy *BusyError
				if err != nil && !errors.As(err, &busy) {
					t.Errorf("apart %v: %v", apart, err)
				}
				if err != nil {
					continue
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				got.Add(1)
				holders.Add(-1)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got.Load() == 0 {
		t.Error("nobody ever held it")
	}
}

func TestRoot(t *testing.T) {
	dir := t.TempDir()
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for _, c := range []struct {
		uid  int
		env  map[string]string
		want string
	}{
		{0, nil, SystemRoot},
		{0, map[string]string{"XDG_RUNTIME_DIR": dir}, SystemRoot},
		{1000, map[string]string{"XDG_RUNTIME_DIR": dir}, dir + "/vmcred"},
		{990, map[string]string{"RUNTIME_DIRECTORY": "/run/vmcred/test-vm"}, SystemRoot},
		// A service of another kind that calls us: /run is not ours, and a VM's
		// name may be that of another program's directory there.
		{0, map[string]string{"RUNTIME_DIRECTORY": "/run/ci"}, SystemRoot},
		{0, map[string]string{"RUNTIME_DIRECTORY": "/run/ci:/run/vmcred/b"}, SystemRoot},
		{1000, map[string]string{"RUNTIME_DIRECTORY": "/run/ci", "XDG_RUNTIME_DIR": dir}, dir + "/vmcred"},
	} {
		if got, err := Root(c.uid, env(c.env)); err != nil || got != c.want {
			t.Errorf("Root(%d, %v) = %q, %v; want %q", c.uid, c.env, got, err, c.want)
		}
	}
	var none *NoRuntimeDirError
	if _, err := Root(4_000_000, env(nil)); !errors.As(err, &none) {
		t.Errorf("no runtime directory: %v", err)
	}
}

func TestRootIsOpenWhateverTheUmask(t *testing.T) {
	root := filepath.Join(t.TempDir(), "vmcred")
	old := unix.Umask(0o777)
	defer unix.Umask(old)
	if err := makeRoot(root); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(root); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v, want 0700", st.Mode(), err)
	}
}

const limitedChild = "VMCRED_TEST_LIMITED"

// What cannot be made leaves nothing and has a hint: a runtime directory that
// cannot be entered by a file, and a lock that cannot be written.
func TestWhatCannotBeMadeLeavesNothing(t *testing.T) {
	if os.Getenv(limitedChild) == "" {
		// In a process of its own: go test's own log would meet the limits, too.
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), limitedChild+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	root := filepath.Join(t.TempDir(), "vmcred")
	if err := acquire(t, root, "a").Close(); err != nil { // the root is there from now on
		t.Fatal(err)
	}
	for what, limit := range map[string]func() func(){
		"no byte can be written": func() func() { return limited(t, unix.RLIMIT_FSIZE, 0) },
		"no file can be opened":  func() func() { return limited(t, unix.RLIMIT_NOFILE, 0) },
	} {
		restore := limit()
		c, err := Acquire(root, "a")
		restore()
		var setup *SetupError
		if c != nil || !errors.As(err, &setup) {
			t.Errorf("%s: %v, %v", what, c, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "a")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the directory is left: %v", what, err)
		}
	}
	for cause, hint := range map[error]string{
		unix.ENOSPC: "make room", unix.EACCES: "able to write", unix.EROFS: "able to write", unix.EMFILE: "ulimit -n",
		&BusyError{}: "stop the running one", unix.EIO: "",
	} {
		if got := (&SetupError{cause}).Hint(); !strings.Contains(got, hint) || (got == "") != (hint == "") {
			t.Errorf("%v: hint %q, want %q", cause, got, hint)
		}
	}
}

// limited lowers one of this process's limits until the function is called.
func limited(t *testing.T, which int, to uint64) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(which, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	if err := unix.Setrlimit(which, &unix.Rlimit{Cur: to, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		signal.Reset(unix.SIGXFSZ)
		if err := unix.Setrlimit(which, &old); err != nil {
			t.Error(err)
		}
	}
}
