// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// newerUnit is a VM of QEMU's with Debian 13's systemd, which says when it is up.
const (
	newerUnit  = "vmcred@newer-vm.service"
	newerImage = "/var/lib/vmcred/images/newer"
	vsockDir   = "/opt/vsock"
	daemon     = "vhost-device-vsock"
)

const newerVM = `version: 1
hypervisor: qemu
memory: 256MiB
boot: {kernel: ` + newerImage + `/vmlinuz, initrd: ` + newerImage + `/initrd, cmdline: %q}
guest: {systemd: 257}
vsock: {cid: 3}
stop-timeout: 2m
credentials:
  host-api-key: {file: /run/secrets/api-key}
`

// newerBinds puts that guest and the daemon into the container; without the daemon
// it builds nothing.
func newerBinds(t *testing.T) []string {
	t.Helper()
	path, err := exec.LookPath(daemon)
	if err != nil {
		return nil
	}
	var stderr bytes.Buffer
	cmd := exec.Command("../../examples/guest/build", "--suite", "trixie")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the guest cannot be built: %v\n%s", err, &stderr)
	}
	return []string{"--bind-ro=" + path + ":" + vsockDir + "/" + daemon, "--bind-ro=" + strings.TrimSpace(string(out)) + ":" + newerImage}
}

// testNewer: a real systemd tells a real systemd, through QEMU and a daemon in the
// unit's sandbox, and nothing of them is left after stop.
func testNewer(t *testing.T, h *host) {
	if _, err := os.Stat(h.path(vsockDir)); err != nil {
		t.Skip("SKIPPED, no systemd said that it is up: needs " + daemon + " on PATH (cargo install " + daemon + ")")
	}
	cmdline := strings.TrimSpace(h.do(t, "cat "+newerImage+"/cmdline"))
	h.write(t, "/etc/vmcred/vms/newer-vm.yaml", fmt.Sprintf(newerVM, cmdline))
	h.write(t, "/etc/systemd/system/"+newerUnit+".d/path.conf", "[Service]\nEnvironment=PATH="+vsockDir+":/usr/bin\n")
	h.do(t, "systemctl daemon-reload; systemctl start "+newerUnit)
	got := h.do(t, "systemctl show --property=ActiveState,StatusText "+newerUnit)
	for _, want := range []string{"ActiveState=active\n", "StatusText=guest: Ready.\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("systemctl does not say %q:\n%s", want, got)
		}
	}
	said := h.do(t, "journalctl --no-pager --unit="+newerUnit)
	if want := "it read its SMBIOS table to the end, with one credential"; !strings.Contains(said, want) {
		t.Errorf("the journal does not say %q:\n%s", want, said)
	}
	h.do(t, "systemctl stop "+newerUnit)
	if got := h.do(t, "find /proc -maxdepth 1 -user vmcred-newer-vm 2>/dev/null || true; ls -A /run/vmcred/newer-vm 2>/dev/null || true"); got != "" {
		t.Errorf("left behind: %s", got)
	}
}
