// SPDX-License-Identifier: Apache-2.0

package trusted

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The two rooms that open files with this one test what is refused; here is
// what they do not see.

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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestANameThatIsNoneAndALinkToNowhere(t *testing.T) {
	path := private(t)
	must(t, os.Symlink("nowhere", filepath.Join(path, "link")))
	must(t, os.WriteFile(filepath.Join(path, "file"), []byte("x"), 0o400))
	dir, err := Directory(path, os.Geteuid())
	must(t, err)
	defer unix.Close(dir)
	if _, err := FileIn(dir, path, "none", os.Geteuid()); !errors.Is(err, ErrNoName) {
		t.Errorf("no name: %v", err)
	}
	_, err = FileIn(dir, path, "link", os.Geteuid())
	if errors.Is(err, ErrNoName) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to nowhere: %v", err)
	}
	fd, err := FileIn(dir, path, "file", os.Geteuid())
	must(t, err)
	must(t, unix.Close(fd))
}

// A link in a directory that stays open is that directory's, whatever has become
// of its path.
func TestALinkOfTheSameDirectory(t *testing.T) {
	path := filepath.Join(private(t), "secrets")
	for at, value := range map[string]string{path: "old", path + "-new": "new"} {
		must(t, os.Mkdir(at, 0o700))
		must(t, os.WriteFile(filepath.Join(at, "file"), []byte(value), 0o400))
		must(t, os.Symlink("file", filepath.Join(at, "link")))
	}
	dir, err := Directory(path, os.Geteuid())
	must(t, err)
	defer unix.Close(dir)
	must(t, os.Rename(path, path+"-old"))
	must(t, os.Rename(path+"-new", path))
	fd, err := FileIn(dir, path, "link", os.Geteuid())
	must(t, err)
	f := os.NewFile(uintptr(fd), "link")
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
}

// Whose a directory is does not count for its place, but whoever can put another in
// its place does: the owner of what it stands in, of a link to it, and its own in a
// sticky directory.
func TestPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can make another user's directory")
	}
	path := private(t)
	at := func(name string) string { return filepath.Join(path, name) }
	for _, d := range []string{"own", "theirs/in", "open/in", "sticky/root", "sticky/theirs"} {
		must(t, os.MkdirAll(at(d), 0o755))
	}
	must(t, os.Symlink("own", at("link")))
	must(t, os.Symlink("own", at("theirlink")))
	must(t, os.Symlink("theirs/in", at("way")))
	must(t, os.Chmod(at("open"), 0o777))
	must(t, os.Chmod(at("sticky"), 0o777|os.ModeSticky))
	for _, p := range []string{"own", "theirs", "theirlink", "sticky/theirs"} {
		must(t, os.Lchown(at(p), 65527, 65527))
	}
	for name, foreign := range map[string]bool{
		"own": false, "link": false, "sticky/root": false, "theirs": false,
		"theirs/in": true, "theirlink": true, "way": true, "open/in": true, "sticky/theirs": true, "own/..": true, "theirs/../own": true,
	} {
		fd, err := Place(path+"/"+name, 0)
		if err == nil {
			must(t, unix.Close(fd))
		}
		if e := (*Error)(nil); (err != nil) != foreign || err != nil && (!errors.As(err, &e) || !e.Foreign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if fd, err := Place(at("theirs/in"), 65527); err != nil {
		t.Errorf("by that user: %v", err)
	} else {
		must(t, unix.Close(fd))
	}
}

// Nothing stays open, whether it was refused or not.
func TestNoDescriptorStays(t *testing.T) {
	path := private(t)
	must(t, os.WriteFile(filepath.Join(path, "bad"), []byte("x"), 0o400))
	must(t, os.Chmod(filepath.Join(path, "bad"), 0o666))
	must(t, os.Symlink("loop", filepath.Join(path, "loop")))
	must(t, os.Symlink("bad/beyond", filepath.Join(path, "beyond")))
	before := descriptors(t)
	for _, name := range []string{"bad", "loop", "beyond", "none", ".", "..", "../../none"} {
		if fd, err := File(filepath.Join(path, "x", "..", name), os.Geteuid()); err == nil {
			t.Errorf("%s: opened as %d", name, fd)
		}
		if fd, err := File(path+"/"+name, os.Geteuid()); err == nil {
			t.Errorf("%s: opened as %d", name, fd)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// A file that is replaced between the look and the opening is looked at again.
func TestReplacedMeanwhile(t *testing.T) {
	path := private(t)
	w := &walker{uid: os.Geteuid(), dir: -1, rest: split(path)}
	defer w.close()
	must(t, w.toRoot())
	for len(w.rest) > 0 {
		_, err := w.step()
		must(t, err)
	}
	must(t, os.Symlink("/etc/passwd", filepath.Join(path, "link")))
	must(t, unix.Mkfifo(filepath.Join(path, "pipe"), 0o600))
	for _, name := range []string{"link", "pipe"} {
		if fd, err := w.open(name); err == nil {
			t.Errorf("%s: opened as %d", name, fd)
		}
	}
	if err := w.enter("link"); err == nil {
		t.Error("entered a link")
	}
}
