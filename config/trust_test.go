// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a directory only we can write, with a/vm.yaml in it.
func tree(t *testing.T) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(dir, "a"), 0o755)
	file = filepath.Join(dir, "a", "vm.yaml")
	write(t, file, least)
	return dir, file
}

func mkdir(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func loads(t *testing.T, path, want string) {
	t.Helper()
	_, problems := Load(path)
	switch {
	case want == "" && len(problems) > 0:
		t.Errorf("%s: %v", path, problems)
	case want != "" && (len(problems) != 1 || !strings.Contains(problems[0].Error(), want)):
		t.Errorf("%s: got %v, want %q", path, problems, want)
	}
}

func TestWritableByOthers(t *testing.T) {
	dir, file := tree(t)
	loads(t, file, "")
	for _, mode := range []fs.FileMode{0o664, 0o646, 0o666} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		loads(t, file, "this file can be written by others")
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]string{
		0o775: "a can be written by others", 0o757: "a can be written by others",
		0o777 | fs.ModeSticky: "", 0o755: "", 0o500: "",
	} {
		if err := os.Chmod(filepath.Join(dir, "a"), mode); err != nil {
			t.Fatal(err)
		}
		loads(t, file, want)
	}
}

func TestLinks(t *testing.T) {
	dir, file := tree(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	link(t, "a", in("rel"))
	link(t, file, in("abs.yaml"))
	link(t, "../"+filepath.Base(dir)+"/a", in("up"))
	loads(t, in("rel/vm.yaml"), "")
	loads(t, in("abs.yaml"), "")
	loads(t, in("up/vm.yaml"), "")

	link(t, "loop.yaml", in("loop.yaml"))
	loads(t, in("loop.yaml"), "more than 40 links")
	link(t, "nowhere.yaml", in("gone.yaml"))
	loads(t, in("gone.yaml"), "nowhere.yaml does not exist")
	loads(t, in("none.yaml"), "there is no such file")
	loads(t, filepath.Join(file, "x.yaml"), "is a file, not a directory")

	// A link through a directory that others can write is theirs to turn.
	mkdir(t, in("open"), 0o777)
	link(t, file, in("open/vm.yaml"))
	link(t, "open/vm.yaml", in("through.yaml"))
	loads(t, in("through.yaml"), "open can be written by others")
}

func TestNotAFile(t *testing.T) {
	dir, _ := tree(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	mkdir(t, in("d.yaml"), 0o755)
	loads(t, in("d.yaml"), "this file is a directory")
	if err := unix.Mkfifo(in("p.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	loads(t, in("p.yaml"), "is a pipe, not a regular file") // and does not hang
	f, err := os.Open(in("a/vm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	link(t, "/dev/fd/0", in("fd.yaml"))
	_, problems := Load(in("fd.yaml"))
	if len(problems.Fatal()) != 1 {
		t.Errorf("a descriptor was read: %v", problems)
	}
}

// TestForeignOwner needs root, to make files of another user.
func TestForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this check makes files of another user and needs root")
	}
	const other = 12345
	dir, file := tree(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	chown := func(path string) {
		if err := os.Lchown(path, other, other); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, in("tmp"), 0o777|fs.ModeSticky)
	link(t, file, in("tmp/theirs.yaml"))
	link(t, file, in("tmp/ours.yaml"))
	chown(in("tmp/theirs.yaml"))
	loads(t, in("tmp/ours.yaml"), "")
	loads(t, in("tmp/theirs.yaml"), "this file belongs to user 12345")
	write(t, in("tmp/file.yaml"), least)
	chown(in("tmp/file.yaml"))
	loads(t, in("tmp/file.yaml"), "this file belongs to user 12345")
	chown(in("a"))
	loads(t, file, "/a belongs to user 12345")
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"web.yaml", "db.json", "both.yaml", "both.json", "old.yml", "README"} {
		write(t, filepath.Join(dir, f), least)
	}
	for name, want := range map[string]string{
		"web": "web.yaml", "db": "db.json", "./x": "./x", "/a/b.yaml": "/a/b.yaml",
	} {
		got, err := Find(name, 1000, func(k string) string { return map[string]string{"XDG_CONFIG_HOME": "/nonexistent"}[k] })
		if !strings.Contains(name, "/") {
			got, err = FindIn(dir, name)
			want = filepath.Join(dir, want)
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"both": "has two files", "wep": "did you mean web? (there are: both, db, web)", "zzzzzz": "there are: both, db, web",
		"old": "rename old.yml to old.yaml", "web.yaml": "for the VM write web, for the file ./web.yaml", "-x": "begin or end", "": "cannot be",
	} {
		_, err := FindIn(dir, name)
		var fe *FindError
		if !errors.As(err, &fe) || !strings.Contains(fe.Message+" "+fe.Tip, want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if _, err := FindIn(filepath.Join(dir, "none"), "x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.(*FindError).Tip, "no VMs yet") {
		t.Errorf("an absent directory: %v", err)
	}
}

func TestDir(t *testing.T) {
	for _, c := range []struct {
		uid       int
		xdg, home string
		want      string
	}{
		{0, "/x", "/root", "/etc/vmcred/vms"},
		{7, "/etc", "", "/etc/vmcred/vms"},
		{7, "", "/home/u", "/home/u/.config/vmcred/vms"},
		{7, "relative", "/home/u", "/home/u/.config/vmcred/vms"},
		{7, "", "", ""},
	} {
		got, err := Dir(c.uid, func(k string) string { return map[string]string{"XDG_CONFIG_HOME": c.xdg, "HOME": c.home}[k] })
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
