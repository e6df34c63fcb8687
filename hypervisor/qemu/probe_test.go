// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/internal/kvm"
)

// script is an executable that counts how often it was started.
func script(t *testing.T, body string) (path string, starts func() int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-probe-") // t.TempDir is closed to the user who is asked as
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	path, log := filepath.Join(dir, executable), filepath.Join(dir, "log")
	write(t, log, nil, 0o666)
	write(t, path, []byte("#!/bin/sh\necho x >>"+log+"\n"+body+"\n"), 0o755)
	return path, func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "x")
	}
}

const says = "echo 'QEMU emulator version %s (Debian 1:7.2+dfsg)'"

func TestProbeRemembers(t *testing.T) {
	path, starts := script(t, fmt.Sprintf(says, "8.2.1"))
	cache := t.TempDir()
	probe := func(want string, total int) {
		t.Helper()
		info, err := New(Options{Path: path, CacheDir: cache}).Probe(t.Context())
		if err != nil || info.Version != want || info.Path != path || info.Accel == "" || info.Why == "" {
			t.Fatalf("%+v, %v", info, err)
		}
		if n := starts(); n != total {
			t.Fatalf("started %d times, want %d", n, total)
		}
	}
	probe("8.2.1", 1)
	probe("8.2.1", 1)
	fact := filepath.Join(cache, factFile)
	if st, err := os.Stat(fact); err != nil || st.Mode() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}

	// Another file at that path.
	write(t, path+".new", []byte("#!/bin/sh\necho x >>"+filepath.Dir(path)+"/log\n"+fmt.Sprintf(says, "9.0")), 0o755)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	probe("9.0.0", 2)
	probe("9.0.0", 2)

	// What is not ours to believe is asked anew, and replaced.
	good, err := os.ReadFile(fact)
	if err != nil {
		t.Fatal(err)
	}
	total := 2
	for name, spoil := range map[string]func() error{
		"garbage": func() error { return os.WriteFile(fact, []byte("{"), 0o600) },
		"another boot": func() error {
			return os.WriteFile(fact, []byte(strings.Replace(string(good), `"boot":"`, `"boot":"0`, 1)), 0o600)
		},
		"writable by all": func() error { return os.Chmod(fact, 0o666) },
		"a link":          func() error { return errors.Join(os.Rename(fact, fact+".x"), os.Symlink(fact+".x", fact)) },
		"too long":        func() error { return os.WriteFile(fact, append(good, make([]byte, factMax)...), 0o600) },
		"somebody else's": func() error { return os.Chown(fact, 65531, 65531) },
		"an absurd answer": func() error {
			return os.WriteFile(fact, []byte(strings.Replace(string(good), "version", "vision", 2)), 0o600)
		},
	} {
		if name == "somebody else's" && os.Geteuid() != 0 {
			t.Log("SKIPPED: somebody else's file needs root")
			continue
		}
		if err := spoil(); err != nil {
			t.Fatal(name, err)
		}
		t.Log(name)
		total++
		probe("9.0.0", total)
		probe("9.0.0", total)
	}
}

func TestProbeRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ body, want, hint string }{
		"too old":    {fmt.Sprintf(says, "6.1.9"), "QEMU 6.1.9, and 6.2.0 is the oldest", "install a newer"},
		"not QEMU":   {"echo bash 5.2", `"bash 5.2"`, ""},
		"no answer":  {"exit 0", `""`, ""},
		"fails":      {"echo libfoo.so: not found >&2; exit 127", "libfoo.so: not found", "by hand"},
		"escape":     {`printf '\033[31mQEMU\n'`, `"?[31mQEMU"`, ""},
		"not 7.2.xx": {fmt.Sprintf(says, "seven"), "version reads", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := script(t, tc.body)
			_, err := New(Options{Path: path, CacheDir: t.TempDir()}).Probe(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(hintOf(err), tc.hint) {
				t.Errorf("%v (hint %q), want %q (%q)", err, hintOf(err), tc.want, tc.hint)
			}
		})
	}
}

func TestProbeFinds(t *testing.T) {
	path, _ := script(t, fmt.Sprintf(says, "7.2.0"))
	t.Chdir(filepath.Dir(path))
	t.Setenv("PATH", filepath.Dir(path))
	if info, err := New(Options{}).Probe(t.Context()); err == nil {
		if info.Path != path {
			t.Errorf("found %s", info.Path)
		}
	} else {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Options{}).Probe(t.Context()); hintOf(err) != "apt install qemu-system-x86" {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	if names, _ := filepath.Glob("*.json"); names != nil {
		t.Errorf("remembered in the working directory: %v", names)
	}
	// Made with our mode, it would keep every unit's user out.
	t.Setenv("PATH", filepath.Dir(path))
	if _, err := New(Options{CacheDir: "missing"}).Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("missing"); err == nil {
		t.Error("a missing directory was made")
	}
	t.Setenv("PATH", ".")
	if _, err := New(Options{}).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "working directory") {
		t.Errorf("got %v", err)
	}
	if _, err := New(Options{Path: "/nonexistent/qemu"}).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "/nonexistent/qemu") {
		t.Errorf("got %v", err)
	}
}

// TestProbeIsNotRoot: not even for its version.
func TestProbeIsNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root could run it as root")
	}
	path, _ := script(t, `[ "$(id -u) $(id -g) $(id -G)" = "65534 65534 65534" ] || exit 1`+"\n"+fmt.Sprintf(says, "7.2.0"))
	if _, err := New(Options{Path: path}).Probe(t.Context()); err != nil {
		t.Error(err)
	}
	path, _ = script(t, fmt.Sprintf(says, "7.2.0"))
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Path: path}).Probe(t.Context()); err == nil || !strings.Contains(hintOf(err), "every user must be able") {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
}

// TestProbeOfOthers: a QEMU that someone else could have written is not even
// asked for its version, which root would run it for.
func TestProbeOfOthers(t *testing.T) {
	others := map[string]func(path string) error{
		"writable by all":        func(path string) error { return os.Chmod(path, 0o777) },
		"in a directory of many": func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
	}
	if os.Geteuid() == 0 {
		others["someone else's"] = func(path string) error { return os.Chown(path, 65534, 65534) }
	}
	for name, change := range others {
		t.Run(name, func(t *testing.T) {
			path, starts := script(t, fmt.Sprintf(says, "7.2.0"))
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", filepath.Dir(path))
			if _, err := New(Options{}).Probe(t.Context()); err == nil || hintOf(err) == "" {
				t.Errorf("%v (hint %q)", err, hintOf(err))
			}
			if n := starts(); n > 0 {
				t.Errorf("it was started %d times", n)
			}
		})
	}
}

func TestProbeIsPatient(t *testing.T) {
	path, _ := script(t, "exec sleep 3600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(Options{Path: path}).Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestAccelerator(t *testing.T) {
	if accel, why := accelerator(kvm.Result{Usable: true, Why: "fine"}); accel != "kvm" || why != "KVM" {
		t.Error(accel, why)
	}
	accel, why := accelerator(kvm.Result{Why: "no\nKVM\x1b here"})
	if accel != "tcg" || why != "software emulation, which is slower: no;KVM? here" {
		t.Errorf("%s %q", accel, why)
	}
}
