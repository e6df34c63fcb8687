// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMemfdHoldsTheRope(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := NewArena()
		defer a.Close()
		r, want := drawRope(t, a, 30)
		m, err := NewMemfd("vmcred-test", r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(m.File())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q, not %q (%v)", got, want, err)
		}
		if err := errors.Join(m.Release(), m.Release()); err != nil {
			t.Fatal(err)
		}
		if m.File() != nil || !errors.Is(m.Chown(0, 0), ErrWiped) {
			t.Fatal("still there after its release")
		}
	})
}

func TestMemfdIsLockedAndPrivate(t *testing.T) {
	a := testArena(t)
	m, err := NewMemfd("vmcred-test-locked", Rope{{Text: "x"}, {Secret: testValue(t, a, plain)}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := m.File().Stat()
	if err != nil || info.Mode() != 0o400 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	wantFlags(t, "vmcred-test-locked", "lo", "dd", "dc")
	fd := m.File().Fd()
	if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Error("not close-on-exec")
	}
	if _, err := unix.FcntlInt(fd, unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); !errors.Is(err, unix.EPERM) {
		t.Errorf("whoever has it can keep us from wiping it: %v", err)
	}
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	if maps, err := os.ReadFile("/proc/self/maps"); err != nil || strings.Contains(string(maps), "vmcred-test-locked") {
		t.Errorf("still mapped (%v)", err)
	}
}

// wantFlags looks for VmFlags of a mapping: lo locked, dd left out of dumps, dc
// not inherited by fork (proc_pid_smaps(5)).
func wantFlags(t *testing.T, name string, flags ...string) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)` + name + `.*?VmFlags: ([^\n]*)`).FindSubmatch(smaps)
	if found == nil {
		t.Fatalf("%s is not mapped", name)
	}
	for _, flag := range flags {
		if !strings.Contains(string(found[1]), flag) {
			t.Errorf("%s: VmFlags %s, without %s", name, found[1], flag)
		}
	}
}

func TestPagesAreLocked(t *testing.T) {
	v := testValue(t, testArena(t), plain)
	if v.s.a.Kind() != "memfd_secret" {
		t.Skip("SKIPPED: this kernel has no memfd_secret (Linux 5.14, before 6.5 with secretmem.enable=1)")
	}
	wantFlags(t, "secretmem", "lo", "dd", "dc")
}

func TestFallbackPagesAreLocked(t *testing.T) {
	a := testArena(t)
	a.newMap = newLockedMapping
	v := testValue(t, a, plain)
	if a.Kind() != "mlock" {
		t.Error(a.Kind())
	}
	wantFlags(t, fmt.Sprintf("%x-", addressOf(v)), "lo", "dd", "dc")
}

// A process that was given the file may cut it, stretch it, or keep a second
// descriptor: it is wiped all the same.
func TestReleaseWipesForAllHolders(t *testing.T) {
	a := testArena(t)
	v := testValue(t, a, strings.Repeat(plain, 1000))
	for name, holder := range map[string]func(*os.File) error{
		"reads":     func(*os.File) error { return nil },
		"truncates": func(f *os.File) error { return f.Truncate(0) },
		"cuts":      func(f *os.File) error { return f.Truncate(5000) },
		"stretches": func(f *os.File) error { return f.Truncate(1 << 20) },
	} {
		m, err := NewMemfd("vmcred-test", Rope{{Secret: v}})
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Dup(int(m.File().Fd()))
		if err != nil {
			t.Fatal(err)
		}
		other := os.NewFile(uintptr(fd), "other")
		if err := holder(other); err != nil {
			t.Fatal(err)
		}
		if err := m.Release(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := other.Stat(); err != nil || info.Size() != 0 {
			t.Errorf("%s: %d bytes stay (%v)", name, info.Size(), err)
		}
		other.Close()
	}
}

func TestMemfdForAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root: gives a file to another user")
	}
	m, err := NewMemfd("vmcred-test", Rope{{Secret: testValue(t, testArena(t), plain)}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	read := func() (string, error) {
		cmd := exec.Command("/bin/cat", "/dev/fd/3")
		cmd.ExtraFiles = []*os.File{m.File()}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65531, Gid: 65531}}
		out, err := cmd.Output()
		return string(out), err
	}
	if out, err := read(); err == nil {
		t.Errorf("read before it was given: %d bytes", len(out))
	}
	if err := m.Chown(65531, 65531); err != nil {
		t.Fatal(err)
	}
	if out, err := read(); err != nil || out != plain {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}
