// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// sharing is PID 1 of a Debian guest: it reads one share and tries to write each.
const sharing = "mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; exec >/dev/ttyS0 2>&1; " +
	"modprobe virtio_pci; modprobe virtiofs; " +
	"for tag in ro rw; do mkdir -p /mnt/$tag; mount -t virtiofs $tag /mnt/$tag || echo $tag: no mount; " +
	"echo $tag: $(cat /mnt/$tag/file); echo new >/mnt/$tag/new && echo $tag: written; done; " +
	"mount -o remount,rw /mnt/ro; rm -f /mnt/ro/file; busybox poweroff -f"

// linux is a small Debian guest, built if it must be.
func linux(t *testing.T) vm.Boot {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED with -short: a Debian guest in software emulation")
	}
	dir := os.Getenv("VMCRED_GUEST")
	if dir == "" {
		var stderr bytes.Buffer
		cmd := exec.Command("../../examples/guest/build")
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("the guest cannot be built: %v\n%s", err, &stderr)
		}
		dir = strings.TrimSpace(string(out))
	}
	return vm.Boot{
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd"),
		Cmdline: `console=ttyS0 quiet cryptomgr.notests panic=-1 rdinit=/bin/sh -- -c "` + sharing + `"`,
	}
}

// sharingVM is a VM with two shares, one of them to write to, and the user QEMU
// runs as; the daemon is the one at path.
func sharingVM(t *testing.T, user string) (*vm.Spec, hypervisor.Launch, *output, *Driver) {
	t.Helper()
	d, info, sp := installed(t)
	sp.Boot, sp.Memory = linux(t), 256<<20
	dir, err := os.MkdirTemp("", "vmcred-shares-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	err = os.Chmod(dir, 0o755)
	for _, tag := range []string{"ro", "rw"} {
		sub := filepath.Join(dir, tag)
		err = errors.Join(err, os.Mkdir(sub, 0o777), os.Chmod(sub, 0o777), os.WriteFile(sub+"/file", []byte("this is "+tag), 0o666), os.Chmod(sub+"/file", 0o666))
		sp.Shares = append(sp.Shares, vm.Share{Tag: tag, Source: sub, Proto: "virtiofs", ReadOnly: tag == "ro", User: user})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Check(sp, info) {
		if p.Severity == vm.Error {
			t.Fatal(p)
		}
	}
	l, out := launchOf(t, d, info, sp, values(t, map[string]string{"A": "b"}))
	if os.Geteuid() == 0 {
		l.Identity = &launch.Identity{UID: 65531, GID: 65531}
		lend(t, sp, dir)
	}
	return sp, l, out, d
}

// lend puts the guest where another user can read it.
func lend(t *testing.T, sp *vm.Spec, dir string) {
	t.Helper()
	for _, path := range []*string{&sp.Boot.Kernel, &sp.Boot.Initrd} {
		b, err := os.ReadFile(*path)
		if err != nil {
			t.Fatal(err)
		}
		*path = filepath.Join(dir, filepath.Base(*path))
		write(t, *path, b, 0o644)
	}
}

// serve runs the guest and compares what it could do.
func serve(t *testing.T, user string) {
	t.Helper()
	sp, l, out, d := sharingVM(t, user)
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	exit, kinds := end(t, m)
	said := out.console.String()
	if !exit.Clean {
		t.Errorf("%+v %v\n%s%s", exit, kinds, said, out.log.String())
	}
	for _, want := range []string{"ro: this is ro", "rw: this is rw", "rw: written"} {
		if !strings.Contains(said, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if strings.Contains(said, "ro: written") || t.Failed() {
		t.Errorf("the guest said:\n%s\nlog:\n%s", said, out.log.String())
	}
	ro, rw := sp.Shares[0].Source, sp.Shares[1].Source
	if text, err := os.ReadFile(ro + "/file"); string(text) != "this is ro" {
		t.Errorf("the read-only share was changed: %q, %v", text, err)
	}
	if _, err := os.Stat(ro + "/new"); err == nil {
		t.Error("the read-only share was written")
	}
	if text, err := os.ReadFile(rw + "/new"); string(text) != "new\n" {
		t.Errorf("the other was not: %q, %v", text, err)
	}
	left, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(ro)) {
			t.Errorf("%s is left: %q", path, b)
		}
	}
}

// TestShares: a Debian guest reads both, and writes the one it may.
func TestShares(t *testing.T) {
	found, err := virtiofs.Probe(t.Context(), virtiofs.Options{})
	users := []string{""}
	if os.Geteuid() == 0 {
		users = []string{"nobody", "root"}
	}
	for _, user := range users {
		t.Run("as "+user, func(t *testing.T) {
			switch {
			case err != nil:
				t.Skipf("SKIPPED: needs virtiofsd: %v", err)
			case found.Legacy && user != "root":
				t.Skipf("SKIPPED: %v runs as root only; put a newer one on PATH", found)
			}
			t.Log(found)
			serve(t, user)
		})
	}
}

// TestShareLost: a daemon that dies is told, and the VM can be ended.
func TestShareLost(t *testing.T) {
	if found, err := virtiofs.Probe(t.Context(), virtiofs.Options{}); err != nil || found.Legacy {
		t.Skipf("SKIPPED: needs virtiofsd 1.13 on PATH; found %v, %v", found, err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "nobody"
	}
	sp, l, _, d := sharingVM(t, user)
	sp.Boot.Cmdline = `console=ttyS0 quiet rdinit=/bin/sleep -- 1000`
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	killed := false
	for e := range m.Events() {
		switch e.Kind {
		case hypervisor.EventRunning:
			killDaemon(t, sp.Shares[1].Source)
			killed = true
		case hypervisor.EventShareLost:
			if !killed || !strings.Contains(e.Detail, "share rw ended") {
				t.Error(e)
			}
			if err := m.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if !killed {
		t.Error("it never ran")
	}
}

// killDaemon kills the daemon that has this directory on its command line.
func killDaemon(t *testing.T, source string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		b, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(b, []byte("--shared-dir="+source)) {
			continue
		}
		pid := 0
		for _, c := range filepath.Base(dir) {
			pid = 10*pid + int(c-'0')
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
