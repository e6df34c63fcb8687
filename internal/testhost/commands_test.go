// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"strings"
	"testing"
)

// wantSaid runs a command that ends with that status, and wants words of it.
func (h *host) wantSaid(t *testing.T, status int, command string, words ...string) {
	t.Helper()
	said := h.do(t, fmt.Sprintf("%s 2>&1 && s=0 || s=$?; echo status $s", command))
	if !strings.HasSuffix(said, fmt.Sprintf("status %d\n", status)) {
		t.Errorf("%s ended otherwise than with %d:\n%s", command, status, said)
	}
	for _, want := range words {
		if !strings.Contains(said, want) {
			t.Errorf("%s does not say %q:\n%s", command, want, said)
		}
	}
}

// testCommands: vmcred's own commands say what systemd says, whatever the VM's
// user writes into its directory.
func testCommands(t *testing.T, h *host) {
	runner := h.processes(t)["runner"]
	h.do(t, fmt.Sprintf(`boot=$(cat /proc/sys/kernel/random/boot_id)
		start=$(cut -d " " -f 22 /proc/1/stat)
		printf '{"version":1,"vm":"test-vm","boot_id":"%%s","runner":{"pid":1,"start":%%s},"credentials":[{"guest":"FORGED"}]}' "$boot" "$start" > %[1]s/record.json
		chown %[2]s %[1]s/record.json`, runDir, vmUser))
	h.wantSaid(t, 0, "vmcred status test-vm", "test-vm: running since ", fmt.Sprintf("process %d\n", runner),
		unitName+": active (running)", "invocation  "+h.starts[0], "says        running")
	h.wantSaid(t, 1, "vmcred status test-vm | grep FORGED")
	h.wantSaid(t, 0, "vmcred status", "test-vm: running")
	h.wantSaid(t, 0, "vmcred list", "test-vm  running  qemu        6            no         "+unitName)
	h.wantSaid(t, 78, "vmcred console test-vm", "the console of test-vm goes to the journal", "journalctl -f -u "+unitName)
	h.wantSaid(t, 78, "setpriv --reuid="+other+" --regid="+other+" --clear-groups env HOME=/nonexistent vmcred stop test-vm",
		"the VM test-vm is not yours", "sudo vmcred")
}

// testStopCommand: a unit is stopped by systemd, which does not start it again.
func testStopCommand(t *testing.T, h *host) {
	h.wantSaid(t, 3, "vmcred status test-vm", "test-vm: stopped", unitName+": inactive (dead)")
	h.do(t, "systemctl start "+unitName)
	h.started(t)
	h.wantSaid(t, 0, "vmcred stop --force test-vm", "test-vm has stopped")
	h.want(t, map[string]string{"ActiveState": "inactive", "Result": "success"})
	h.wantSaid(t, 0, "vmcred stop test-vm", "test-vm does not run")
	h.wantSaid(t, 0, "vmcred status", "no VM runs")
}
