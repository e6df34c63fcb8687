// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// spec is a small VM in software emulation with the kernel given.
func spec(kernel string) *vm.Spec {
	return &vm.Spec{
		Name: "test-vm", Hypervisor: "qemu", CPUs: 1, Memory: 128 << 20,
		Boot:    vm.Boot{Kernel: kernel},
		Console: vm.Console{Mode: vm.ConsoleStdout},
		Guest:   vm.Guest{Systemd: 252},
		Notify:  vm.NotifyBoot,
		QEMU:    vm.QEMU{Machine: "q35", Accel: "tcg"},
	}
}

// installed finds QEMU and a VM with the probe guest, or skips loudly.
func installed(t *testing.T) (*Driver, hypervisor.Info, *vm.Spec) {
	t.Helper()
	if _, err := exec.LookPath(executable); err != nil {
		t.Skip("SKIPPED: needs " + executable + " (apt install qemu-system-x86)")
	}
	d := New(Options{CacheDir: t.TempDir()})
	info, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d, info, spec(probe.Build(t))
}

// values is a set of secrets, by guest name.
func values(t *testing.T, secrets map[string]string) *credential.Set {
	t.Helper()
	s := credential.NewSet()
	t.Cleanup(func() { _ = s.Close() })
	for name, value := range secrets {
		v, err := secret.Read(strings.NewReader(value), credential.MaxValue)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AddSecret(strings.ToLower(name), name, v); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// launchOf plans the set and makes a launch of it.
func launchOf(t *testing.T, d *Driver, info hypervisor.Info, spec *vm.Spec, set *credential.Set) (hypervisor.Launch, *output) {
	t.Helper()
	plan, refusals := delivery.Make(d.Offers(spec, info), delivery.Guest{Systemd: spec.Guest.Systemd}, set.Metas())
	if len(refusals) > 0 {
		t.Fatal(refusals)
	}
	out := &output{}
	return hypervisor.Launch{
		Spec: spec, Info: info, Plan: plan,
		Deliver: func(context.Context) (*delivery.Payload, error) { return plan.Encode(set) },
		RunDir:  t.TempDir(), Console: &out.console, Log: &out.log,
	}, out
}

type output struct{ console, log buffer }

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// end waits for the VM's end and returns the kinds of its events.
func end(t *testing.T, m hypervisor.Machine) (hypervisor.Exit, []hypervisor.EventKind) {
	t.Helper()
	var kinds []hypervisor.EventKind
	for e := range m.Events() {
		kinds = append(kinds, e.Kind)
	}
	exit, err := m.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit, kinds
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func touch(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	write(t, path, []byte("x"), 0o644)
	return path
}

// kernelFile is what CheckAccess takes for a kernel. It boots nowhere.
func kernelFile(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "kernel")
	write(t, path, []byte("\x7fELF"), 0o644)
	return path
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// descriptorsOpen lists what this process holds, for "nothing is left".
func descriptorsOpen(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasSuffix(to, "/fd") && !strings.HasPrefix(to, "anon_inode:") {
			out = append(out, to)
		}
	}
	slices.Sort(out)
	return out
}
