// SPDX-License-Identifier: Apache-2.0

package testkvm

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func modeOf(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode()
}

// The last who is done undoes what the first did.
func TestWidenUntilTheLast(t *testing.T) {
	for _, perm := range []fs.FileMode{0o600, 0o660} {
		path := filepath.Join(t.TempDir(), "device")
		if err := os.WriteFile(path, nil, perm); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, perm); err != nil { // whatever the umask
			t.Fatal(err)
		}
		var done []func()
		for range 3 {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d, err := widen(f)
			if err != nil {
				t.Fatal(err)
			}
			done = append(done, d)
		}
		for i, d := range []func(){done[1], done[0], done[2]} {
			if got := modeOf(t, path); got.Perm() != 0o666 {
				t.Fatalf("before %d is done the mode is %s", i, got)
			}
			d()
		}
		if got := modeOf(t, path); got != perm {
			t.Errorf("in the end the mode is %s, it was %s", got, perm)
		}
	}
}

// What is open stays as it is, and what has a mode of its own is left alone.
func TestWidenLeavesOthers(t *testing.T) {
	for perm, ok := range map[fs.FileMode]bool{0o666: true, 0o640: false} {
		path := filepath.Join(t.TempDir(), "device")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, perm); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		done, err := widen(f)
		if (err == nil) != ok {
			t.Fatalf("%s: %v", perm, err)
		}
		if done != nil {
			done()
		}
		if got := modeOf(t, path); got != perm {
			t.Errorf("the mode is %s, it was %s", got, perm)
		}
	}
}
