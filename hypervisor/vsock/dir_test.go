// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	vmUID    = 61001 // users nobody needs to have made
	otherUID = 61002
)

// vmUser is somebody to give the directory to: another user if we are root.
func vmUser(t *testing.T) *launch.Identity {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	return &launch.Identity{User: "vm", UID: vmUID, GID: vmUID}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root: run the test as root to see it with another user")
	}
}

func makeDir(t *testing.T, runDir string, id *launch.Identity) *Dir {
	t.Helper()
	d, err := MakeDir(runDir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func runDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// as runs f on a thread that is another user, whose descriptors are ours.
func as(t *testing.T, uid int, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its user
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(call, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// connect connects as a VMM does, by the descriptor.
func connect(d *Dir, name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: procPath(d.file) + "/" + name})
}

func TestMakeDir(t *testing.T) {
	run, id := runDir(t), vmUser(t)
	d := makeDir(t, run, id)
	info, err := os.Lstat(filepath.Join(run, "vsock"))
	if err != nil {
		t.Fatal(err)
	}
	want := os.Geteuid()
	if id != nil {
		want = vmUID
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode() != os.ModeDir|0o700 || int(st.Uid) != want {
		t.Errorf("mode %v, uid %d", info.Mode(), st.Uid)
	}
	if flags, err := unix.FcntlInt(d.File().Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH == 0 {
		t.Errorf("the descriptor has flags %o, %v", flags, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil || d.File() != nil {
		t.Errorf("closed again: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(run, "vsock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestTheModeDoesNotDependOnTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o777} {
		run := runDir(t)
		old := unix.Umask(mask)
		d, err := MakeDir(run, nil)
		if err == nil {
			_, err = Listen(d, "s", 1, nil)
		}
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]os.FileMode{d.Path(""): 0o700, d.Path("s_1"): 0o600} {
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("umask %o: %s has %v, %v", mask, path, info.Mode(), err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAPredecessorsDirectoryIsReplaced(t *testing.T) {
	run, id := runDir(t), vmUser(t)
	old, err := MakeDir(run, id) // and never closed: it died
	if err != nil {
		t.Fatal(err)
	}
	defer old.root.Close()
	defer old.file.Close()
	l, err := Listen(old, "sock", 7, id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "kept"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	deep := old.Path("a/b")
	for _, err := range []error{
		os.MkdirAll(deep, 0o700), os.Symlink(outside, old.Path("link")), os.Symlink(outside, filepath.Join(deep, "link")),
		unix.Mkfifo(old.Path("pipe"), 0), os.Chmod(deep, 0), os.Chmod(filepath.Dir(deep), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d := makeDir(t, run, id)
	if list, err := os.ReadDir(d.Path("")); err != nil || len(list) != 0 {
		t.Errorf("the new one holds %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	l2, err := Listen(d, "sock", 7, id)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.Path("sock_7")); err != nil {
		t.Errorf("the old listener removed the new one's socket: %v", err)
	}
}

func TestWhatIsNotOursStays(t *testing.T) {
	id := vmUser(t)
	for name, put := range map[string]func(path string) error{
		"file": func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"link": func(p string) error { return os.Symlink(os.TempDir(), p) },
		"somebody's": func(p string) error {
			if os.Geteuid() != 0 {
				return os.WriteFile(p, nil, 0o600)
			}
			return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, otherUID, otherUID))
		},
	} {
		run := runDir(t)
		path := filepath.Join(run, "vsock")
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		_, err := MakeDir(run, id)
		var not *NotOursError
		if !errors.As(err, &not) || !strings.Contains(not.Hint(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: it is gone: %v", name, err)
		}
	}
	if _, err := MakeDir(filepath.Join(t.TempDir(), "none"), id); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no runtime directory: %v", err)
	}
}

func TestOnlyTheVMMsUserConnects(t *testing.T) {
	needRoot(t)
	id := vmUser(t)
	d := makeDir(t, runDir(t), id)
	l, err := Listen(d, "sock", 7, id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := as(t, vmUID, func() error { return connect(d, "sock_7") }); err != nil {
		t.Errorf("the VMM's user: %v", err)
	}
	if err := as(t, otherUID, func() error { return connect(d, "sock_7") }); !errors.Is(err, unix.EACCES) {
		t.Errorf("another user, even with the descriptor: %v", err)
	}
	if err := as(t, vmUID, func() error { _, err := net.Dial("unix", d.Path("sock_7")); return err }); !errors.Is(err, unix.EACCES) {
		t.Errorf("by its path: %v", err)
	}
	err = as(t, vmUID, func() error { return unix.Mknod(procPath(d.file)+"/own", unix.S_IFREG|0o600, 0) })
	if err != nil {
		t.Errorf("the VMM's user cannot make its own socket there: %v", err)
	}
}
