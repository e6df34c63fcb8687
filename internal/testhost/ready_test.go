// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// readyUnit is a VM whose guest says when it is up. Its hypervisor is the stand-in
// for cloud-hypervisor, which is this program.
const (
	readyUnit = "vmcred@ready-vm.service"
	vmmDir    = "/opt/ch"
)

const readyVM = `version: 1
hypervisor: cloud-hypervisor
memory: 128MiB
boot: {kernel: /usr/bin/true, cmdline: %q}
guest: {systemd: 257}
vsock: {cid: 3}
start-timeout: %s
stop-timeout: 2m
credentials:
  host-api-key: {file: /run/secrets/api-key}
`

// giveKVM makes the device that cloud-hypervisor needs, as udev would.
func (h *host) giveKVM(t *testing.T) {
	t.Helper()
	st, err := os.Stat("/dev/kvm")
	if err != nil {
		t.Skipf("SKIPPED, no unit waited for its guest: cloud-hypervisor needs KVM: %v", err)
	}
	dev := uint64(st.Sys().(*syscall.Stat_t).Rdev)
	h.do(t, fmt.Sprintf("test -e /dev/kvm || mknod -m 660 /dev/kvm c %d %d; chgrp kvm /dev/kvm", unix.Major(dev), unix.Minor(dev)))
}

func (h *host) writeReadyVM(t *testing.T, cmdline, limit string) {
	t.Helper()
	h.write(t, "/etc/vmcred/vms/ready-vm.yaml", fmt.Sprintf(readyVM, cmdline, limit))
}

// testReady: systemctl start returns once the guest has said that it is up, and
// status shows what it says; what it may not say changes nothing.
func testReady(t *testing.T, h *host) {
	h.giveKVM(t)
	h.writeReadyVM(t, "ready wait say=MAINPID=1%0aSTATUS=half%1b[2Jway", "3m")
	h.write(t, "/etc/systemd/system/"+readyUnit+".d/path.conf", "[Service]\nEnvironment=PATH="+vmmDir+":/usr/bin\n")
	h.do(t, "systemctl daemon-reload; systemctl start "+readyUnit)
	got := h.do(t, "systemctl show --property=ActiveState,StatusText,MainPID "+readyUnit+"; systemctl status --no-pager "+readyUnit+" || true")
	for _, want := range []string{"ActiveState=active\n", "StatusText=guest: probe is up\n", `Status: "guest: probe is up"`} {
		if !strings.Contains(got, want) {
			t.Errorf("systemctl does not say %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "MainPID=1\n") {
		t.Error("the guest has changed the unit's main process")
	}
	said := h.do(t, "vmcred status ready-vm --json; journalctl --no-pager --unit="+readyUnit)
	for _, want := range []string{"it read its SMBIOS table to the end, with one credential", "a guest's notification is not passed on: MAINPID="} {
		if !strings.Contains(said, want) {
			t.Errorf("the journal does not say %q:\n%s", want, said)
		}
	}
	h.do(t, "systemctl stop "+readyUnit)
}

// testSilent: a guest that never says so is a start that failed, and systemctl and
// the journal say why.
func testSilent(t *testing.T, h *host) {
	h.giveKVM(t)
	h.writeReadyVM(t, "wait", "1s")
	out, err := h.try("systemctl start " + readyUnit)
	if err == nil {
		t.Errorf("a guest that said nothing is ready: %s", out)
	}
	h.do(t, "systemctl stop "+readyUnit)
	said := h.do(t, "journalctl --no-pager --unit="+readyUnit)
	if want := "no READY=1 from the guest within 1s"; !strings.Contains(said, want) {
		t.Errorf("the journal does not say %q:\n%s", want, said)
	}
}
