// SPDX-License-Identifier: Apache-2.0

package credential_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
)

// dir makes a private directory under a path that only root and we can write.
func dir(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	must(t, os.Chmod(d, 0o700))
	return d
}

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	must(t, os.WriteFile(path, b, 0o400))
	return path
}

func arena(t *testing.T) *secret.Arena {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { must(t, a.Close()) })
	return a
}

func file(t *testing.T, path string) credential.Source {
	t.Helper()
	return credential.Files(arena(t), map[string]string{"host-x": path})
}

// refused opens host-x and wants an error that says want and has a hint.
func refused(t *testing.T, s credential.Source, want string) *credential.SourceError {
	t.Helper()
	v, err := s.Open(context.Background(), "host-x")
	var se *credential.SourceError
	if !errors.As(err, &se) {
		t.Fatalf("got %v, %v, want a SourceError", v, err)
	}
	if !strings.Contains(err.Error(), want) || se.Hint() == "" {
		t.Errorf("%q (hint %q), want %q", err, se.Hint(), want)
	}
	if errors.Is(err, fs.ErrNotExist) {
		t.Error("the error would let a chain look elsewhere")
	}
	return se
}

func opened(t *testing.T, s credential.Source, name string, want []byte) {
	t.Helper()
	v, err := s.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	if got := plain(t, secret.Rope{{Secret: v}}); !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes, want %d", name, len(got), len(want))
	}
}

func TestDirectory(t *testing.T) {
	d := dir(t)
	mib := bytes.Repeat([]byte{0, '\n', 0xff, 'x'}, credential.MaxValue/4)
	write(t, d+"/host-api-key", []byte("key\n"))
	write(t, d+"/empty", nil)
	write(t, d+"/mib", mib)
	write(t, d+"/too:odd", []byte("x"))
	must(t, os.Mkdir(d+"/sub", 0o700))
	must(t, os.Symlink("host-api-key", d+"/link"))
	must(t, os.Symlink("nowhere", d+"/dangling"))
	s, err := credential.Directory(arena(t), d+"/")
	must(t, err)
	if s.String() != "credentials directory "+d {
		t.Errorf("%s", s)
	}
	names, err := s.Names(context.Background())
	must(t, err)
	if want := []string{"dangling", "empty", "host-api-key", "link", "mib"}; !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
	opened(t, s, "host-api-key", []byte("key\n"))
	opened(t, s, "link", []byte("key\n"))
	opened(t, s, "empty", nil)
	opened(t, s, "mib", mib)
	for _, name := range []string{"absent", "HOST-API-KEY"} {
		if _, err := s.Open(context.Background(), name); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var se *credential.SourceError
	if _, err := s.Open(context.Background(), "dangling"); !errors.As(err, &se) || !se.Missing {
		t.Errorf("dangling: %v", err)
	}
	for _, name := range []string{"../x", ".", "..", ""} {
		var ne *credential.NameError
		if _, err := s.Open(context.Background(), name); !errors.As(err, &ne) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The directory that was checked is the one all names are read from.
func TestDirectoryStaysTheSame(t *testing.T) {
	d := dir(t) + "/credentials"
	must(t, os.Mkdir(d, 0o700))
	write(t, d+"/host-x", []byte("checked"))
	s, err := credential.Directory(arena(t), d)
	must(t, err)
	must(t, os.Rename(d, d+"-away"))
	must(t, os.Mkdir(d, 0o777))
	write(t, d+"/host-x", []byte("put there later"))
	opened(t, s, "host-x", []byte("checked"))
	for range 2 {
		if names, err := s.Names(context.Background()); err != nil || !slices.Equal(names, []string{"host-x"}) {
			t.Errorf("names %q, %v", names, err)
		}
	}
	must(t, s.Close())
	if _, err := s.Open(context.Background(), "host-x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDirectoryThatIsNone(t *testing.T) {
	d := dir(t)
	write(t, d+"/file", nil)
	must(t, os.Mkdir(d+"/open", 0o700))
	must(t, os.Chmod(d+"/open", 0o777))
	for path, want := range map[string]string{
		d + "/absent": "does not exist",
		d + "/file":   "not a directory",
		d + "/open":   "can be written by others (mode 0777)",
		"relative":    "is not an absolute path",
		"":            "is not an absolute path",
	} {
		if _, err := credential.Directory(arena(t), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestFiles(t *testing.T) {
	d := dir(t)
	paths := map[string]string{"b": write(t, d+"/1", []byte("one")), "a": write(t, d+"/2", []byte("two\n"))}
	s := credential.Files(arena(t), paths)
	delete(paths, "b") // the source has its own copy
	opened(t, s, "b", []byte("one"))
	opened(t, s, "a", []byte("two\n"))
	names, err := s.Names(context.Background())
	if err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := s.Open(context.Background(), "c"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("c: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Open(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestFileIsMissing(t *testing.T) {
	d := dir(t)
	if se := refused(t, file(t, d+"/absent"), d+"/absent does not exist"); !se.Missing {
		t.Error("not marked as missing")
	}
	must(t, os.Symlink("gone/file", d+"/link"))
	if se := refused(t, file(t, d+"/link"), d+"/gone does not exist"); !se.Missing {
		t.Error("not marked as missing")
	}
}

func TestFileIsTooLarge(t *testing.T) {
	path := write(t, dir(t)+"/x", make([]byte, credential.MaxValue+1))
	se := refused(t, file(t, path), "larger than 1048576 bytes")
	var large *secret.TooLargeError
	if !errors.As(se, &large) || se.Missing {
		t.Errorf("%v", se)
	}
}

func TestFileIsNotRegular(t *testing.T) {
	d := dir(t)
	must(t, os.Mkdir(d+"/dir", 0o700))
	must(t, unix.Mkfifo(d+"/pipe", 0o600))
	l, err := net.Listen("unix", d+"/socket")
	must(t, err)
	defer l.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	must(t, os.Symlink("loop", d+"/loop"))
	write(t, d+"/file", nil)
	for path, want := range map[string]string{
		d + "/dir":    "is a directory",
		d + "/pipe":   "is a pipe", // and does not hang, though nobody writes
		d + "/socket": "is a socket",
		"/dev/null":   "is a device",
		"/":           "is a directory",
		d + "/loop":   "more than 40 links",
		d + "/file/x": "not a directory",
		d + "/\x00":   "NUL",
		"relative":    "is not an absolute path",
		"/proc/self/fd/" + strconv.Itoa(int(r.Fd())): "open descriptor (pipe:[",
		d + strings.Repeat("/x", 3000):               "does not exist",
	} {
		_, err := file(t, path).Open(context.Background(), "host-x")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", path, err, want)
		}
	}
}

func TestFileThatOthersCanWrite(t *testing.T) {
	d := dir(t)
	for _, mode := range []fs.FileMode{0o420, 0o402, 0o666} {
		path := write(t, d+"/x", []byte("x"))
		must(t, os.Chmod(path, mode))
		se := refused(t, file(t, path), "can be written by others")
		if !strings.Contains(se.Hint(), "chmod go-w "+path) {
			t.Errorf("hint %q", se.Hint())
		}
		must(t, os.Remove(path))
	}
	must(t, os.MkdirAll(d+"/open/sub", 0o700))
	path := write(t, d+"/open/sub/x", []byte("x"))
	opened(t, file(t, path), "host-x", []byte("x"))
	must(t, os.Chmod(d+"/open", 0o770))
	refused(t, file(t, path), d+"/open can be written by others (mode 0770)")

	// By a link, the road there and the road on both count.
	must(t, os.Symlink(path, d+"/link"))
	refused(t, file(t, d+"/link"), d+"/open can be written")
	good := write(t, d+"/good", []byte("x"))
	must(t, os.Symlink(good, d+"/open/link"))
	refused(t, file(t, d+"/open/link"), d+"/open can be written")
	refused(t, file(t, d+"/open/../good"), d+"/open can be written")
}

func TestStickyDirectory(t *testing.T) {
	d := dir(t) + "/sticky"
	must(t, os.Mkdir(d, 0o700))
	must(t, os.Chmod(d, 0o777|fs.ModeSticky))
	path := write(t, d+"/x", []byte("x"))
	opened(t, file(t, path), "host-x", []byte("x"))
	must(t, os.Chmod(path, 0o622))
	refused(t, file(t, path), "can be written by others")
	// A directory in it that is not sticky itself gets no licence from it.
	must(t, os.Mkdir(d+"/sub", 0o700))
	must(t, os.Chmod(d+"/sub", 0o777))
	refused(t, file(t, write(t, d+"/sub/x", nil)), d+"/sub can be written")
	_, err := credential.Directory(arena(t), d)
	if err != nil {
		t.Errorf("a sticky directory: %v", err)
	}
}

func TestFileOfSomeoneElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to make files of other users")
	}
	d := dir(t)
	path := write(t, d+"/x", []byte("x"))
	must(t, os.Chown(path, 12345, 0))
	refused(t, file(t, path), "belongs to user 12345")

	must(t, os.Mkdir(d+"/theirs", 0o700))
	inside := write(t, d+"/theirs/x", []byte("x"))
	must(t, os.Chown(d+"/theirs", 12345, 0))
	refused(t, file(t, inside), d+"/theirs belongs to user 12345")
	must(t, os.Chmod(d+"/theirs", 0o777|fs.ModeSticky)) // whoever owns it can replace anything in it
	refused(t, file(t, inside), d+"/theirs belongs to user 12345")

	// A link that someone else put into a sticky directory leads where they like.
	must(t, os.Mkdir(d+"/sticky", 0o700))
	must(t, os.Chmod(d+"/sticky", 0o777|fs.ModeSticky))
	good := write(t, d+"/good", []byte("x"))
	must(t, os.Symlink(good, d+"/sticky/link"))
	opened(t, file(t, d+"/sticky/link"), "host-x", []byte("x"))
	must(t, os.Lchown(d+"/sticky/link", 12345, 0))
	refused(t, file(t, d+"/sticky/link"), d+"/sticky/link belongs to user 12345")
}

// The running user may own the file; root's are fine for everyone.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to become an ordinary user")
	}
	d, err := os.MkdirTemp("/tmp", "credential-")
	must(t, err)
	defer os.RemoveAll(d)
	must(t, os.Chmod(d, 0o755))
	mine, roots, closed := d+"/mine", d+"/roots", d+"/closed"
	write(t, mine, []byte("m"))
	must(t, os.Chown(mine, 12345, 12345))
	write(t, roots, []byte("r"))
	must(t, os.Chmod(roots, 0o444))
	write(t, closed, []byte("c"))
	must(t, os.Mkdir(d+"/private", 0o700))
	asUser(t, 12345, func(t *testing.T) {
		opened(t, file(t, mine), "host-x", []byte("m"))
		opened(t, file(t, roots), "host-x", []byte("r"))
		for _, path := range []string{closed, d + "/private/x"} {
			se := refused(t, file(t, path), path+": permission denied")
			if !errors.Is(se, fs.ErrPermission) || !strings.Contains(se.Hint(), "LoadCredential=") || se.Missing {
				t.Errorf("%v, hint %q", se, se.Hint())
			}
		}
	})
}

// asUser runs f on a thread of its own that has another effective user; it ends
// with f.
func asUser(t *testing.T, uid int, f func(t *testing.T)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			t.Error(errno)
			return
		}
		f(t)
	}()
	<-done
}

// A file is read to its end, whatever stat(2) says of its size.
func TestFileIsReadToItsEnd(t *testing.T) {
	const path = "/proc/version" // has size 0
	want, err := os.ReadFile(path)
	must(t, err)
	opened(t, file(t, path), "host-x", want)
}

func TestChain(t *testing.T) {
	d1, d2 := dir(t), dir(t)
	write(t, d1+"/both", []byte("1"))
	write(t, d1+"/first", []byte("1"))
	write(t, d2+"/both", []byte("2"))
	write(t, d2+"/second", []byte("2"))
	write(t, d2+"/broken", []byte("2"))
	a := arena(t)
	one, err := credential.Directory(a, d1)
	must(t, err)
	two, err := credential.Directory(a, d2)
	must(t, err)
	s := credential.Chain(credential.Files(a, map[string]string{"broken": d1 + "/absent"}), one, two)
	opened(t, s, "both", []byte("1"))
	opened(t, s, "first", []byte("1"))
	opened(t, s, "second", []byte("2"))
	names, err := s.Names(context.Background())
	if want := []string{"both", "broken", "first", "second"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := s.Open(context.Background(), "absent"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d2) {
		t.Errorf("absent: %v", err)
	}
	// What the first source promises and does not have is not looked for in the next.
	var se *credential.SourceError
	if _, err := s.Open(context.Background(), "broken"); !errors.As(err, &se) || !se.Missing {
		t.Errorf("broken: %v", err)
	}
	if _, err := credential.Chain().Open(context.Background(), "x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none is given") {
		t.Errorf("an empty chain: %v", err)
	}
}
