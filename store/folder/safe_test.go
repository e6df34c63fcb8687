// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
)

// base is the present version of a generator.
func base(t *testing.T, f *Folder, name string) store.Version {
	t.Helper()
	s, err := f.pin(t.Context(), []store.Ref{{Generator: name}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.pinned[0].version()
}

func value(t *testing.T, text string) *secret.Value {
	t.Helper()
	v, err := secret.Read(strings.NewReader(text), len(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Wipe)
	return v
}

// untouched: by a Put that failed.
func untouched(t *testing.T, f *Folder) {
	t.Helper()
	s, err := f.pin(t.Context(), []store.Ref{{Generator: "gen"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := read(t, s, "gen", "api-key"); got != "one" {
		t.Errorf("%q", got)
	}
}

// A disk that has no room for the first directory of ours, either.
func TestNoRoomForADirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, a disk without inodes: needs root, to mount one")
	}
	dir := private(t)
	// Its root, the generator, its file, the lock.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "nr_inodes=4,mode=700"); err != nil {
		t.Skip("SKIPPED, a disk without inodes: needs mount(2): " + err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.Mkdir(filepath.Join(dir, "gen"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "gen/api-key"), "one")
	f, err := Open(dir, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	files := []store.File{{Name: "api-key", Value: value(t, "two")}}
	if _, err := f.Put(t.Context(), store.Ref{Generator: "gen"}, base(t, f, "gen"), files); !errors.Is(err, unix.ENOSPC) || !strings.Contains(hintOf(err), "is the disk full?") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
	untouched(t, f)
}

// What could not be read again, or is no value any more, is not put.
func TestWhatIsNotPut(t *testing.T) {
	wiped := value(t, "x")
	wiped.Wipe()
	many := make([]store.File, MaxFiles+1)
	for i := range many {
		many[i] = store.File{Name: "f" + strings.Repeat("x", i%100) + string(rune('a'+i/100)), Value: value(t, "")}
	}
	for name, c := range map[string]struct {
		files []store.File
		want  string
	}{
		"wiped":     {[]store.File{{Name: "api-key", Value: wiped}}, "wiped"},
		"no value":  {[]store.File{{Name: "api-key"}}, "wiped"},
		"too large": {[]store.File{{Name: "api-key", Value: value(t, strings.Repeat("x", maxValue+1))}}, "1048577 bytes"},
		"twice":     {[]store.File{{Name: "api-key", Value: value(t, "1")}, {Name: "api-key", Value: value(t, "2")}}, "twice"},
		"too many":  {many, "1024 files"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := byHand(t)
			if _, err := f.Put(t.Context(), store.Ref{Generator: "gen"}, base(t, f, "gen"), c.files); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			untouched(t, f)
			if _, err := os.Lstat(filepath.Join(dir, versions)); err == nil {
				t.Error("something was begun")
			}
		})
	}
}

// Nothing is written to or removed from where .versions leads, or where others can write.
func TestVersionsThatAreNotOurs(t *testing.T) {
	for name, do := range map[string]func(dir, elsewhere string) error{
		"a link": func(dir, elsewhere string) error { return os.Symlink(elsewhere, filepath.Join(dir, versions)) },
		"open": func(dir, _ string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, versions), 0o700), os.Chmod(filepath.Join(dir, versions), 0o777))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := byHand(t)
			elsewhere := private(t)
			write(t, filepath.Join(elsewhere, "kept"), "kept")
			if err := do(dir, elsewhere); err != nil {
				t.Fatal(err)
			}
			files := []store.File{{Name: "api-key", Value: value(t, "two")}}
			if _, err := f.Put(t.Context(), store.Ref{Generator: "gen"}, base(t, f, "gen"), files); err == nil || !strings.Contains(err.Error(), versions) || hintOf(err) == "" {
				t.Errorf("%v, hint %q", err, hintOf(err))
			}
			untouched(t, f)
			if _, err := os.Lstat(filepath.Join(elsewhere, "kept")); err != nil {
				t.Error(err)
			}
		})
	}
}

// A folder that was restored without .versions, say: waiting does not mend it.
func TestALinkToNowhere(t *testing.T) {
	dir, f := byHand(t)
	put(t, f, "gen", "two")
	if err := os.RemoveAll(filepath.Join(dir, versions)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pin(t.Context(), store.Ref{Generator: "gen"}); err == nil || errors.Is(err, store.ErrChanging) || !strings.Contains(err.Error(), "leads to nothing") || hintOf(err) == "" {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
}

// Written in place, as long as before and with the old time put back: it is seen all the
// same. A link fewer is not.
func TestWrittenInPlaceUnseen(t *testing.T) {
	for name, c := range map[string]struct {
		do      func(path string) error
		changed bool
	}{
		"written": {func(path string) error {
			old, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("two"), 0o600), os.Chtimes(path, time.Time{}, old.ModTime()))
		}, true},
		"removed": {os.Remove, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := byHand(t)
			s, err := f.pin(t.Context(), []store.Ref{{Generator: "gen"}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := c.do(filepath.Join(dir, "gen/api-key")); err != nil {
				t.Fatal(err)
			}
			a := secret.NewArena()
			defer a.Close()
			_, err = s.Open(t.Context(), a, store.Ref{Generator: "gen"}, "api-key")
			if errors.Is(err, store.ErrChanging) != c.changed || !c.changed && err != nil {
				t.Error(err)
			}
		})
	}
}
