// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	shareVM    = "share-vm"
	shareUnit  = "vmcred@share-vm.service"
	shareOf    = "vmcred-share-share-vm-" // and a tag
	shareFile  = "/etc/vmcred/vms/share-vm.yaml"
	shareGuest = "mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; exec >/dev/ttyS0 2>&1; " +
		"modprobe virtio_pci; modprobe virtiofs; " +
		"for tag in ro rw; do mkdir -p /mnt/$tag; mount -t virtiofs $tag /mnt/$tag; " +
		"echo demo: $tag: $(cat /mnt/$tag/file); echo new >/mnt/$tag/new && echo demo: $tag: written; done; " +
		"echo demo: done; busybox poweroff -f"
)

// writeShareVM writes a VM that runs that as PID 1 of the guest. user is the shares', or empty.
func writeShareVM(t *testing.T, c *container, user, program string) {
	t.Helper()
	c.write(t, shareFile, fmt.Sprintf(`version: 1
hypervisor: qemu
memory: 256MiB
stop-timeout: 0s
boot:
  kernel: /var/lib/vmcred/images/demo/vmlinuz
  initrd: /var/lib/vmcred/images/demo/initrd
  cmdline: 'console=ttyS0 quiet cryptomgr.notests panic=-1 rdinit=/bin/sh -- -c "%[1]s"'
shares:
  - {tag: ro, source: /srv/ro, readonly: true%[2]s}
  - {tag: rw, source: /srv/rw, readonly: false%[2]s}
`, program, user))
}

// setUpShares boots a host with that VM. Its virtiofsd is
// that one; empty: it has QEMU's old one alone.
func setUpShares(t *testing.T, daemon, user string) *host {
	t.Helper()
	h := &host{page: readPage(t, "../../docs/systemd.md")}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	if daemon != "" {
		b, err := os.ReadFile(daemon)
		if err == nil {
			err = os.WriteFile(filepath.Join(dest, "usr/local/bin/virtiofsd"), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	h.container = boot(t, dir, "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guestDirectory(t)+":/var/lib/vmcred/images/demo")
	writeShareVM(t, h.container, user, shareGuest)
	h.do(t, "systemctl daemon-reload; systemctl start vmcred-share-user@share-vm.service")
	h.do(t, "install -d -o vmshare-share-vm /srv/ro /srv/rw; echo this is ro >/srv/ro/file; echo this is rw >/srv/rw/file")
	h.wantGenerated(t, shareVM)
	h.journal = followJournal(t, h.container, shareUnit)
	return h
}

// TestShareUnits: under a real systemd the VM's unit, which may start nothing, has
// its shares from units of their own.
func TestShareUnits(t *testing.T) {
	needs(t)
	daemon, err := exec.LookPath("virtiofsd")
	if err != nil {
		t.Skip("SKIPPED: needs virtiofsd 1.13 or newer on PATH (Debian 13, or cargo install virtiofsd)")
	}
	h := setUpShares(t, daemon, "")
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
	}{
		{"the guest reads and writes", testShared},
		{"the daemon sees nothing else", testShareSandbox},
		{"a lost share restarts the VM", testShareLost},
		{"stop ends all", testShareStop},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			t.Log(h.do(t, "journalctl --no-pager --boot --lines=60"))
			t.FailNow()
		}
	}
}

func shareShow(t *testing.T, h *host, unit, property string) string {
	t.Helper()
	return strings.TrimSpace(h.do(t, "systemctl show --value --property="+property+" '"+unit+"'"))
}

// TestShareUnitsOfRoot: with user: root the guest's root is root in the directory,
// with whichever daemon there is. Debian 12 has the old one, and that alone.
func TestShareUnitsOfRoot(t *testing.T) {
	needs(t)
	daemons := map[string]string{"new": "", "old": ""}
	if path, err := exec.LookPath("virtiofsd"); err == nil {
		daemons["new"] = path
	}
	for which, daemon := range daemons {
		t.Run(which, func(t *testing.T) {
			if _, err := os.Stat("/usr/lib/qemu/virtiofsd"); which == "old" && err != nil {
				t.Skip("SKIPPED: needs /usr/lib/qemu/virtiofsd (Debian 12)")
			}
			if which == "new" && daemon == "" {
				t.Skip("SKIPPED: needs virtiofsd 1.13 or newer on PATH (Debian 13, or cargo install virtiofsd)")
			}
			h := setUpShares(t, daemon, ", user: root")
			h.do(t, "chown -R root: /srv; chmod -R go= /srv/ro /srv/rw")
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(h.do(t, "journalctl --no-pager --boot --lines=60"))
				}
			})
			shared(t, h, "root")
		})
	}
}

func testShared(t *testing.T, h *host) { shared(t, h, "vmshare-"+shareVM) }

// shared starts the VM. What its guest makes has to belong to that user.
func shared(t *testing.T, h *host, user string) {
	t.Helper()
	h.do(t, "systemctl start "+shareUnit)
	h.starts = append(h.starts, shareShow(t, h, shareUnit, "InvocationID"))
	said := h.heard(t, h.starts[0])
	for _, want := range []string{"ro: this is ro", "rw: this is rw", "rw: written"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("the guest did not say %q: %q", want, said)
		}
	}
	h.journal.wait(t, "the end of the unit", func(r record) bool {
		return strings.Contains(r.message(), "Deactivated successfully")
	})
	if _, err := os.Stat(h.path("/srv/ro/new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the read-only share was written: %v", err)
	}
	if owner := strings.TrimSpace(h.do(t, "stat -c %U /srv/rw/new")); owner != user {
		t.Errorf("the new file is %s's", owner)
	}
	for _, tag := range []string{"ro", "rw"} {
		if got := h.do(t, "systemctl show --value --property=Result "+shareOf+tag+".service"); strings.TrimSpace(got) != "success" {
			t.Errorf("the daemon of %s ended with %s", tag, got)
		}
	}
}

func testShareSandbox(t *testing.T, h *host) {
	writeShareVM(t, h.container, "", "exec sleep 1000")
	h.do(t, "systemctl start "+shareUnit)
	for _, tag := range []string{"ro", "rw"} {
		pid := shareShow(t, h, shareOf+tag+".service", "MainPID")
		root := "/proc/" + pid + "/root"
		got := strings.Fields(h.do(t, "stat -c %U /proc/"+pid+"; ls -A "+root+"/srv; ls -A "+root+"/etc; ls -A "+root+"/run"))
		if want := []string{"vmshare-" + shareVM, tag, "ld.so.cache", "systemd"}; !slices.Equal(got, want) {
			t.Errorf("the daemon of %s: %q, want %q", tag, got, want)
		}
	}
	if out, err := h.try("setpriv --reuid=vmshare-share-vm --clear-groups test -w /run/vmcred-share/share-vm/ro.sock"); err == nil {
		t.Errorf("another user may connect: %s", out)
	}
}

func testShareLost(t *testing.T, h *host) {
	h.starts = append(h.starts, shareShow(t, h, shareUnit, "InvocationID"))
	h.do(t, "systemctl kill --signal=KILL "+shareOf+"rw.service")
	h.journal.wait(t, "a new start of the VM", func(r record) bool {
		return r["VMCRED_PID"] != "" && !slices.Contains(h.starts, r.invocation())
	})
}

func testShareStop(t *testing.T, h *host) {
	h.do(t, "systemctl stop "+shareUnit)
	for _, tag := range []string{"ro", "rw"} {
		for _, suffix := range []string{".socket", ".service"} {
			if got := shareShow(t, h, shareOf+tag+suffix, "ActiveState"); got != "inactive" {
				t.Errorf("%s%s%s is %s", shareOf, tag, suffix, got)
			}
		}
	}
	if got := h.do(t, "ls -A /run/vmcred-share/share-vm"); got != "" {
		t.Errorf("left behind: %s", got)
	}
	h.do(t, "systemctl reset-failed")
}
