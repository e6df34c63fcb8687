// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGenerated: the bytes of Files, and a drop-in that comes before those of people.
func TestGenerated(t *testing.T) {
	d := Virtiofsd{Path: "/usr/libexec/virtiofsd"}
	want, err := Files(sharing(), d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Generated(sharing(), d)
	if err != nil {
		t.Fatal(err)
	}
	want[0].Path = "vmcred@x.service.d/10-vmcred.conf"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := filepath.Base(got[0].Path); n > "sources.conf" || n > dropInName {
		t.Errorf("%s comes after what people write", n)
	}
}

func TestFileOf(t *testing.T) {
	for unit, want := range map[string]string{"vmcred@a-b.service": "vmcred@.service", "x.service": "x.service", Target: Target} {
		if got := FileOf(unit); got != want {
			t.Errorf("%s comes from %s, want %s", unit, got, want)
		}
	}
}

// reasons have what is special in a unit file, in a shell and in printf.
func reasons() []string {
	return []string{`a.yaml:3:1: "$HOME" '%i' 100% \n ${x} $(id) ` + "`id`" + ` ä \`, "    hint: -e"}
}

// TestRefused: systemd takes the drop-in as it is, and the reasons come out as they
// went in.
func TestRefused(t *testing.T) {
	f := Refused("x", reasons())
	if f.Path != "vmcred@x.service.d/10-vmcred.conf" {
		t.Errorf("its path is %s", f.Path)
	}
	as, problems := Parse(f.Path, f.Text)
	if len(problems) > 0 || len(as) != 3 {
		t.Fatalf("%v\n%s", problems, f.Text)
	}
	if as[0].Key != "Description" || !strings.Contains(as[0].Value, `'%%i' 100%% \n`) || as[1] != (Assignment{"Service", "ExecStart", "", as[1].Pos}) {
		t.Errorf("%+v", as)
	}
	verify(t, place(t, filepath.Dir(instance(t)), f))
}

// place writes a drop-in and returns its unit.
func place(t *testing.T, dir string, f File) string {
	t.Helper()
	path := filepath.Join(dir, f.Path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Text, 0o644)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, strings.TrimSuffix(filepath.Dir(f.Path), ".d"))
}
