// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package kvm

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// lastingHere skips a test where the machine's own verdict is not one to keep.
func lastingHere(t *testing.T) verdict {
	t.Helper()
	v := test(Device)
	if !v.lasting {
		t.Skipf("SKIPPED, nothing was measured: KVM gives no lasting answer here: %s", v.why)
	}
	return v
}

func TestRememberedIsKeptAndPrivate(t *testing.T) {
	want := lastingHere(t)
	dir := t.TempDir()
	if v, kept := remembered(dir, Device); kept || v != want {
		t.Errorf("first: %+v kept %v, want %+v", v, kept, want)
	}
	if v, kept := remembered(dir, Device); !kept || v != want {
		t.Errorf("second: %+v kept %v, want %+v from the file", v, kept, want)
	}
	if r := Remembered(dir); r.Usable != want.usable || r.Why != want.why {
		t.Errorf("Remembered says %+v, want %+v", r, want)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v: want one file", list, err)
	}
	if info, err := list[0].Info(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Whatever lies in the file's place, the machine is measured and the file is good again.
func TestRememberedMistrustsTheFile(t *testing.T) {
	want := lastingHere(t)
	key, err := identify(Device)
	if err != nil {
		t.Fatal(err)
	}
	lie := key
	lie.Usable, lie.Why = !want.usable, "a lie"
	with := func(change func(*memory)) []byte {
		m := lie
		change(&m)
		b, err := m.marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := with(func(*memory) {})
	write := func(b []byte, mode os.FileMode) func(string) error {
		return func(path string) error {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				return err
			}
			return os.Chmod(path, mode)
		}
	}
	cases := map[string]func(path string) error{
		"empty":             write(nil, 0o600),
		"cut":               write(good[:len(good)-2], 0o600),
		"longer":            write(append(good[:len(good):len(good)], 'x'), 0o600),
		"another boot":      write(with(func(m *memory) { m.Boot = "other" }), 0o600),
		"another device":    write(with(func(m *memory) { m.Device = "other" }), 0o600),
		"another format":    write(with(func(m *memory) { m.Format++ }), 0o600),
		"a control byte":    write(with(func(m *memory) { m.Why = "a\x1b[2J" }), 0o600),
		"readable by all":   write(good, 0o644),
		"writable by group": write(good, 0o620),
		"a link":            func(path string) error { return linkTo(path, good) },
		"a second name":     func(path string) error { return secondName(path, good) },
		"a fifo":            func(path string) error { return unix.Mkfifo(path, 0o600) },
	}
	if os.Geteuid() == 0 {
		cases["another owner"] = func(path string) error {
			if err := os.WriteFile(path, good, 0o600); err != nil {
				return err
			}
			return os.Chown(path, 12345, 12345)
		}
	}
	for name, plant := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := plant(filepath.Join(dir, fileName)); err != nil {
				t.Fatal(err)
			}
			if v, kept := remembered(dir, Device); kept || v != want {
				t.Errorf("%+v kept %v, want %+v measured", v, kept, want)
			}
			if v, kept := remembered(dir, Device); !kept || v != want {
				t.Errorf("then %+v kept %v, want %+v from the file", v, kept, want)
			}
		})
	}
	t.Run("control: the lie itself would be believed", func(t *testing.T) {
		dir := t.TempDir()
		if err := write(good, 0o600)(filepath.Join(dir, fileName)); err != nil {
			t.Fatal(err)
		}
		if v, kept := remembered(dir, Device); !kept || v.why != "a lie" {
			t.Errorf("%+v kept %v: the cases above prove nothing", v, kept)
		}
	})
}

func linkTo(path string, b []byte) error {
	if err := os.WriteFile(path+".target", b, 0o600); err != nil {
		return err
	}
	return os.Symlink(path+".target", path)
}

func secondName(path string, b []byte) error {
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	return os.Link(path, path+".second")
}

func TestRememberedWithoutADirectory(t *testing.T) {
	t.Chdir(t.TempDir()) // no directory is not this one
	want := test(Device)
	for _, dir := range []string{filepath.Join(t.TempDir(), "absent"), ""} {
		for range 2 {
			if v, kept := remembered(dir, Device); kept || v != want {
				t.Errorf("%q: %+v kept %v, want %+v", dir, v, kept, want)
			}
		}
	}
}

func TestAMissingDeviceIsNotRemembered(t *testing.T) {
	dir := t.TempDir()
	remembered(dir, filepath.Join(dir, "no-kvm"))
	if list, _ := os.ReadDir(dir); len(list) > 0 {
		t.Errorf("left %v", list)
	}
}

func FuzzParse(f *testing.F) {
	good, err := memory{Format: format, Boot: "b", Device: "d", Usable: true, Why: "KVM runs"}.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if again, err := m.marshal(); err != nil || string(again) != string(b) {
			t.Errorf("%q is read as %q", b, again)
		}
		for _, c := range []byte(m.Why) {
			if c < 0x20 || c > 0x7e {
				t.Errorf("%q would reach a terminal", m.Why)
			}
		}
	})
}
