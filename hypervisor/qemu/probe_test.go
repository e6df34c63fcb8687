// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// TestProbe: QEMU is asked once, and its version and the accelerator are told.
func TestProbe(t *testing.T) {
	path, starts := script(t, fmt.Sprintf(says, "9.0"))
	d := New(Options{Path: path, CacheDir: t.TempDir()})
	for range 2 {
		info, err := d.Probe(t.Context())
		if err != nil || info.Version != "9.0.0" || info.Path != path || info.Accel == "" || info.Why == "" {
			t.Fatalf("%+v, %v", info, err)
		}
	}
	if n := starts(); n != 1 {
		t.Errorf("started %d times", n)
	}
	t.Setenv("PATH", filepath.Dir(path))
	if info, err := New(Options{}).Probe(t.Context()); err != nil || info.Path != path {
		t.Errorf("on PATH: %+v, %v", info, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Options{}).Probe(t.Context()); hintOf(err) != "apt install qemu-system-x86" {
		t.Errorf("%v (hint %q)", err, hintOf(err))
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

func TestAccelerator(t *testing.T) {
	if accel, why := accelerator(kvm.Result{Usable: true, Why: "fine"}); accel != "kvm" || why != "KVM" {
		t.Error(accel, why)
	}
	accel, why := accelerator(kvm.Result{Why: "no\nKVM\x1b here"})
	if accel != "tcg" || why != "software emulation, which is slower: no;KVM? here" {
		t.Errorf("%s %q", accel, why)
	}
}
