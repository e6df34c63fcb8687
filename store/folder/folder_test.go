// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/store/storetest"
)

// TestMain is also a process that puts until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FOLDER_PUT"); dir != "" {
		putForEver(dir)
		return
	}
	os.Exit(m.Run())
}

// private is a directory that nobody else can write, nor one on its way.
func private(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSuite(t *testing.T) {
	root := private(t)
	storetest.Run(t, func(t *testing.T, where string) store.Store {
		dir := filepath.Join(root, where)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := Open(dir, os.Geteuid())
		if err != nil {
			t.Fatal(err)
		}
		return f
	})
}

func putForEver(dir string) {
	f, err := Open(dir, os.Geteuid())
	if err != nil {
		fmt.Println(err)
		return
	}
	a := secret.NewArena()
	for n := 0; ; n++ {
		v, _ := a.Read(strings.NewReader(strings.Repeat(strconv.Itoa(n%10), 5000)), 1<<20)
		base := store.Version("")
		if s, err := f.pin(context.Background(), []store.Ref{{Generator: "g"}}); err == nil {
			base = s.pinned[0].version()
			_ = s.Close()
		}
		if _, err := f.Put(context.Background(), store.Ref{Generator: "g"}, base, []store.File{{Name: "a", Value: v}, {Name: "b", Value: v}}); err != nil {
			fmt.Println(err)
			return
		}
		if n == 0 {
			fmt.Println("begun")
		}
		v.Wipe()
	}
}

// Killed at any moment, a Put leaves the old files or the new ones, and the next one clears
// what the dead one had begun.
func TestKilledWhilePutting(t *testing.T) {
	dir := private(t)
	f, err := Open(dir, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{"FOLDER_PUT=" + dir}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 6)
		if n, err := out.Read(line); string(line[:n]) != "begun\n" {
			t.Fatalf("%q %v", line[:n], err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s, err := f.pin(t.Context(), []store.Ref{{Generator: "g"}})
		if err != nil {
			t.Fatal(err)
		}
		a, b := read(t, s, "g", "a"), read(t, s, "g", "b")
		if a != b || len(a) != 5000 || strings.Trim(a, a[:1]) != "" {
			t.Fatalf("%d bytes %q… with %d bytes %q…", len(a), a[:1], len(b), b[:1])
		}
		_ = s.Close()
	}
	put(t, f, "g", "x")
	left, err := os.ReadDir(filepath.Join(dir, versions))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func put(t *testing.T, f *Folder, name, text string) {
	t.Helper()
	base := store.Version("")
	if s, err := f.pin(t.Context(), []store.Ref{{Generator: name}}); err == nil {
		base = s.pinned[0].version()
		_ = s.Close()
	}
	a := secret.NewArena()
	defer a.Close()
	v, err := a.Read(strings.NewReader(text), 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), store.Ref{Generator: name}, base, []store.File{{Name: "a", Value: v}}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *Snapshot, name, file string) string {
	t.Helper()
	a := secret.NewArena()
	defer a.Close()
	v, err := s.Open(t.Context(), a, store.Ref{Generator: name}, file)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	_ = v.Use(func(b []byte) error { text = string(b); return nil })
	return text
}

// byHand is a folder as a person makes one.
func byHand(t *testing.T) (string, *Folder) {
	t.Helper()
	dir := private(t)
	if err := os.MkdirAll(filepath.Join(dir, "gen"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "gen/api-key"), "one")
	f, err := Open(dir, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	return dir, f
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestMadeByHand(t *testing.T) {
	dir, f := byHand(t)
	write(t, filepath.Join(dir, "gen/.api-key.swp"), "an editor's")
	s, err := f.pin(t.Context(), []store.Ref{{Generator: "gen"}})
	if err != nil {
		t.Fatal(err)
	}
	// Replaced and removed by hand: the snapshot has what was there.
	write(t, filepath.Join(dir, "gen/new"), "two")
	if err := os.Rename(filepath.Join(dir, "gen/new"), filepath.Join(dir, "gen/api-key")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, "gen", "api-key"); got != "one" {
		t.Errorf("%q", got)
	}
	_ = s.Close()
	// Put takes such a directory over.
	put(t, f, "gen", "three")
	if s, err = f.pin(t.Context(), []store.Ref{{Generator: "gen"}}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := read(t, s, "gen", "a"); got != "three" {
		t.Errorf("%q", got)
	}
	if left, err := os.ReadDir(filepath.Join(dir, versions)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestWrittenInPlace(t *testing.T) {
	dir, f := byHand(t)
	s, err := f.pin(t.Context(), []store.Ref{{Generator: "gen"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Chmod(filepath.Join(dir, "gen/api-key"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "gen/api-key"), "a longer one")
	a := secret.NewArena()
	defer a.Close()
	if v, err := s.Open(t.Context(), a, store.Ref{Generator: "gen"}, "api-key"); err == nil || !strings.Contains(err.Error(), "was changed while it was read") {
		t.Errorf("%v %v", v, err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		do         func(t *testing.T, dir string) error
		want, hint string
	}{
		"readable":     {func(_ *testing.T, dir string) error { return os.Chmod(dir+"/gen/api-key", 0o444) }, "is open to others (mode 0444)", "chmod 400 "},
		"by the group": {func(_ *testing.T, dir string) error { return os.Chmod(dir+"/gen/api-key", 0o440) }, "is open to others (mode 0440)", "chmod 400 "},
		"writable":     {func(_ *testing.T, dir string) error { return os.Chmod(dir+"/gen", 0o777) }, "can be written by others", "chmod"},
		"sticky":       {func(_ *testing.T, dir string) error { return os.Chmod(dir+"/gen", 0o777|os.ModeSticky) }, "can be written by others", "chmod 700 "},
		"the folder":   {func(_ *testing.T, dir string) error { return os.Chmod(dir, 0o777|os.ModeSticky) }, "can be written by others", "chmod 700 "},
		"a link":       {func(_ *testing.T, dir string) error { return os.Symlink("/etc/passwd", dir+"/gen/link") }, "is a link", "put the file itself there"},
		"a pipe":       {func(_ *testing.T, dir string) error { return unix.Mkfifo(dir+"/gen/pipe", 0o400) }, "is no regular file", "a file of its own"},
		"a directory":  {func(_ *testing.T, dir string) error { return os.Mkdir(dir+"/gen/dir", 0o700) }, "is no regular file", "a file of its own"},
		"an odd name":  {func(_ *testing.T, dir string) error { return os.WriteFile(dir+"/gen/a b", nil, 0o400) }, "has a name that no var can have", "rename it"},
		"gen is a file": {func(t *testing.T, dir string) error {
			_ = os.RemoveAll(dir + "/gen")
			return os.WriteFile(dir+"/gen", nil, 0o400)
		}, "is no directory", "a directory of its own"},
		"gen leads away": {func(t *testing.T, dir string) error {
			_ = os.Rename(dir+"/gen", dir+"/x")
			return os.Symlink("x", dir+"/gen")
		}, "is a link that leads elsewhere", "put the files there themselves"},
		"gen leads out": {func(t *testing.T, dir string) error {
			_ = os.RemoveAll(dir + "/gen")
			return os.Symlink(".versions/gen.../../etc", dir+"/gen")
		}, "is a link that leads elsewhere", ""},
		"not there":        {func(_ *testing.T, dir string) error { return os.RemoveAll(dir + "/gen") }, "there is no generator gen", "none yet"},
		"the folder is no": {func(_ *testing.T, dir string) error { return os.RemoveAll(dir) }, "does not exist", "install -d -m 700"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := byHand(t)
			if err := c.do(t, dir); err != nil {
				t.Fatal(err)
			}
			_, err := f.Pin(t.Context(), store.Ref{Generator: "gen"})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(hintOf(err), c.hint) {
				t.Errorf("%v, hint %q; want %q, %q", err, hintOf(err), c.want, c.hint)
			}
		})
	}
}

func TestAnothersFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, a file of another user: needs root, to make one")
	}
	dir, f := byHand(t)
	if err := os.Chown(dir+"/gen/api-key", 4242, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pin(t.Context(), store.Ref{Generator: "gen"}); err == nil || !strings.Contains(err.Error(), "belongs to user 4242") {
		t.Error(err)
	}
}

func TestAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, a full disk: needs root, to mount one")
	}
	dir := private(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Skip("SKIPPED, a full disk: needs mount(2): " + err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := Open(dir, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "g", "old")
	s, err := f.pin(t.Context(), []store.Ref{{Generator: "g"}})
	if err != nil {
		t.Fatal(err)
	}
	base := s.pinned[0].version()
	_ = s.Close()
	a := secret.NewArena()
	defer a.Close()
	v, err := a.Read(strings.NewReader(strings.Repeat("x", 100<<10)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(t.Context(), store.Ref{Generator: "g"}, base, []store.File{{Name: "a", Value: v}}); err == nil || !strings.Contains(hintOf(err), "is the disk full?") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
	if s, err = f.pin(t.Context(), []store.Ref{{Generator: "g"}}); err != nil || read(t, s, "g", "a") != "old" {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, versions)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"a", "a/b", "..", ".a", "-a", "ä", "a\x00", strings.Repeat("a", MaxName+1)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckName(s) == nil && (filepath.Base(s) != s || strings.ContainsAny(s, "/\x00\n ") || len(s) > MaxName || s[0] == '.') {
			t.Errorf("%q", s)
		}
	})
}
