// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// generated is where the generator writes.
const generated = "/run/systemd/generator"

// generatorPage has two sections with commands, each with a step of TestUnit.
const generatorPage = "../../docs/generator.md"

// wantGenerated: what the generator wrote for a VM is what vmcred units writes.
func (h *host) wantGenerated(t *testing.T, name string) {
	t.Helper()
	h.do(t, fmt.Sprintf(`rm -rf /tmp/units; mkdir /tmp/units
		vmcred units %[1]s --output /tmp/units
		mv /tmp/units/vmcred@%[1]s.service.d/vmcred.conf /tmp/units/vmcred@%[1]s.service.d/10-vmcred.conf
		cd /tmp/units; find . -type f | while read -r f; do cmp "$f" "%[2]s/$f"; done`, name, generated))
}

// quickVM needs no more of its guest than that it runs.
const quickVM = `version: 1
hypervisor: qemu
memory: 256MiB
stop-timeout: 0s
autostart: %v
boot: {kernel: /var/lib/vmcred/images/demo/vmlinuz, initrd: /var/lib/vmcred/images/demo/initrd, cmdline: %q}
credentials:
  host-api-key: {file: /etc/vmcred/secrets/api-key}
`

// bootsTo is the guest's target, which says what it was given.
const bootsTo = "console=ttyS0 quiet systemd.unit=demo.target"

// TestGenerator boots a host that has VMs' files and nothing else of them: no user,
// no drop-in, no link. One of the files is broken.
func TestGenerator(t *testing.T) {
	needs(t)
	h := &host{page: readPage(t, "../../docs/systemd.md")}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	for path, text := range map[string]string{
		"etc/vmcred/vms/auto-vm.yaml":                            fmt.Sprintf(quickVM, true, bootsTo),
		"etc/vmcred/vms/other-vm.yaml":                           fmt.Sprintf(quickVM, false, bootsTo),
		"etc/vmcred/vms/broken.yaml":                             fmt.Sprintf(quickVM, false, bootsTo) + "memry: 100%\n",
		"etc/vmcred/secrets/api-key":                             "sesame",
		"etc/systemd/system/test.target.d/multi-user.conf":       "[Unit]\nWants=multi-user.target\nAfter=multi-user.target\n",
		"etc/systemd/system/vmcred@other-vm.service.d/mine.conf": "[Service]\nTimeoutStopSec=77\n",
	} {
		mode := os.FileMode(0o644)
		if strings.Contains(path, "secrets") {
			mode = 0o600
		}
		path = filepath.Join(dir, "root", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	h.container = boot(t, dir, "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guestDirectory(t)+":/var/lib/vmcred/images/demo")
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
	}{
		{"a VM is up after the boot", testAutostart},
		{"its users made themselves", testUsers},
		{"a broken file", testBroken},
		{"a VM of now", testNow},
		{"the target", testTargetStops},
		{"a mended file", testMended},
		{"many users at once", testManyUsers},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			t.Log(h.do(t, "systemctl --no-pager --failed; journalctl --no-pager --boot --lines=80"))
			t.FailNow()
		}
	}
}

func state(t *testing.T, h *host, unit string) string {
	t.Helper()
	return strings.TrimSpace(h.do(t, "systemctl show --value --property=ActiveState '"+unit+"'"))
}

func testAutostart(t *testing.T, h *host) {
	for unit, want := range map[string]string{
		"vmcred.target": "active", "vmcred@auto-vm.service": "active", "vmcred@other-vm.service": "inactive", "vmcred@broken.service": "failed",
	} {
		if got := state(t, h, unit); got != want {
			t.Errorf("%s is %s, want %s\n%s", unit, got, want, h.do(t, "systemctl status --no-pager "+unit+" || true"))
		}
	}
	if t.Failed() {
		return
	}
	h.journal = followJournal(t, h.container, "vmcred@auto-vm.service")
	h.journal.wait(t, "the value", func(r record) bool { return r.message() == "demo: api-key 6 bytes" })
	for _, vm := range []string{"auto-vm", "other-vm"} {
		h.wantGenerated(t, vm)
	}
}

func testUsers(t *testing.T, h *host) {
	h.wantSaid(t, 0, "id vmcred-auto-vm", "(kvm)")
	h.wantSaid(t, 0, "getent passwd vmcred-auto-vm", ":/usr/sbin/nologin")
	h.wantSaid(t, 0, "stat -c %U /proc/$(systemctl show --value --property=MainPID vmcred@auto-vm.service)", "vmcred-auto-vm")
	h.wantSaid(t, 1, "id vmcred-other-vm")
	// Nobody's name makes no user, and a user that is there is left alone.
	h.do(t, "systemctl start vmcred-user@nobodys.service vmcred-share-user@nobodys.service")
	h.wantSaid(t, 2, "getent passwd vmcred-nobodys vmshare-nobodys")
	again := "systemctl restart vmcred-user@auto-vm.service vmcred-share-user@auto-vm.service; cat /etc/passwd /etc/group"
	if before, after := h.do(t, again), h.do(t, again); after != before || !strings.Contains(before, "\nvmshare-auto-vm:") {
		t.Errorf("the users were\n%sand are\n%s", before, after)
	}
	if got := state(t, h, "vmcred@auto-vm.service"); got != "active" {
		t.Errorf("the VM is %s since its user was looked at again", got)
	}
	for _, unit := range []string{"vmcred-user@auto-vm.service", "vmcred-share-user@auto-vm.service"} {
		h.do(t, "systemd-analyze security --no-pager --threshold=14 "+unit)
	}
}

func testBroken(t *testing.T, h *host) {
	h.wantSaid(t, 3, "systemctl status --no-pager --full vmcred@broken.service", "VM broken, refused: /etc/vmcred/vms/broken.yaml:9:1: memry: there is no such key", "status=78")
	h.wantSaid(t, 0, "journalctl --sync; journalctl --no-pager --boot --unit vmcred@broken.service",
		"memry: there is no such key", "hint: did you mean memory?", "mended since then? systemctl daemon-reload")
	h.wantSaid(t, 1, "systemctl start vmcred@broken.service", "vmcred@broken.service failed")
	h.wantSaid(t, 0, "systemctl show --property=NRestarts,ExecMainStatus vmcred@broken.service", "NRestarts=0", "ExecMainStatus=78")
	h.wantSaid(t, 0, "systemctl --no-pager --failed --plain --no-legend", "vmcred@broken.service")
}

// testNow: a file, daemon-reload and start are all that is needed. What people wrote
// by hand wins.
func testNow(t *testing.T, h *host) {
	h.write(t, "/etc/vmcred/vms/now-vm.yaml", fmt.Sprintf(quickVM, false, bootsTo))
	h.do(t, "systemctl daemon-reload; systemctl start vmcred@now-vm vmcred@other-vm")
	h.wantSaid(t, 0, "systemctl show --value --property=TimeoutStopUSec vmcred@other-vm", "1min 17s")
	h.wantSaid(t, 0, "vmcred status", "now-vm: running", "other-vm: running", "auto-vm: running")
	h.do(t, "rm /etc/vmcred/vms/now-vm.yaml; systemctl daemon-reload; systemctl stop vmcred@now-vm; test ! -e "+generated+"/vmcred@now-vm.service.d")
}

// wantStopping: stop of the target does not wait for guests, so it waits here.
func wantStopping(t *testing.T, h *host, vms ...string) {
	t.Helper()
	for _, vm := range vms {
		if got := state(t, h, "vmcred@"+vm+".service"); got != "inactive" && got != "deactivating" {
			t.Errorf("after stop of the target %s is %s", vm, got)
		}
		h.do(t, "systemctl stop vmcred@"+vm)
	}
}

func testTargetStops(t *testing.T, h *host) {
	h.do(t, "systemctl stop vmcred.target")
	wantStopping(t, h, "auto-vm", "other-vm")
	h.do(t, "systemctl start vmcred@other-vm; systemctl stop vmcred.target") // the target does not run
	wantStopping(t, h, "other-vm")
	h.do(t, "systemctl start vmcred.target")
	for vm, want := range map[string]string{"auto-vm": "active", "other-vm": "inactive"} {
		if got := state(t, h, "vmcred@"+vm+".service"); got != want {
			t.Errorf("after start %s is %s, want %s", vm, got, want)
		}
	}
	h.do(t, "systemctl stop vmcred.target")
	wantStopping(t, h, "auto-vm")
}

func testMended(t *testing.T, h *host) {
	h.write(t, "/etc/vmcred/vms/broken.yaml", fmt.Sprintf(quickVM, false, bootsTo))
	h.wantSaid(t, 1, "systemctl start vmcred@broken.service")
	h.do(t, "systemctl daemon-reload; systemctl start vmcred@broken; systemctl stop vmcred@broken")
	h.wantSaid(t, 0, "systemctl show --value --property=Description vmcred@broken", "VM broken\n")
}

// testManyUsers: /etc/passwd is one file, and every VM wants to write to it at boot.
func testManyUsers(t *testing.T, h *host) {
	const n = 20
	for i := range n {
		h.write(t, fmt.Sprintf("/etc/vmcred/vms/many-%d.yaml", i), fmt.Sprintf(quickVM, false, bootsTo))
	}
	h.do(t, fmt.Sprintf("systemctl daemon-reload; systemctl start $(seq -f vmcred-user@many-%%g.service 0 %d)", n-1))
	got := strings.Fields(h.do(t, "grep -c ^vmcred-many- /etc/passwd; getent group kvm | tr , '\\n' | grep -c vmcred-many-; cut -d: -f3 /etc/passwd | sort | uniq -d | wc -l"))
	if want := fmt.Sprintf("[%[1]d %[1]d 0]", n); fmt.Sprint(got) != want {
		t.Errorf("users, in kvm, with another's number: %v, want %s", got, want)
	}
}

func testTarget(t *testing.T, h *host) {
	h.do(t, h.block(t, "The secrets")) // one was left empty
	h.do(t, "systemctl start "+unitName)
	h.heard(t, h.started(t)) // so it takes the power button
	readPage(t, generatorPage).follow(t, h.container, "All VMs")
	wantStopping(t, h, "test-vm")
	h.want(t, map[string]string{"ActiveState": "inactive", "Result": "success"})
}

// testNoGenerator is the way without it, from no drop-in at all.
func testNoGenerator(t *testing.T, h *host) {
	readPage(t, generatorPage).follow(t, h.container, "Without the generator")
	h.do(t, "test ! -e "+generated+"/"+unitName+".d; systemctl start "+unitName)
	h.started(t)
	h.want(t, map[string]string{"ActiveState": "active", "UnitFileState": "enabled"})
	h.do(t, "vmcred stop --force test-vm")
}
