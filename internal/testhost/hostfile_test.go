// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"path/filepath"
	"testing"
)

const (
	hostFile = "/etc/vmcred/vmcred.yaml"
	fileUnit = "vmcred@file-vm.service"
)

// bareVM needs nothing of its guest, and this of the host.
const bareVM = `version: 1
hypervisor: qemu
memory: 256MiB
stop-timeout: 0s
boot: {kernel: /var/lib/vmcred/images/demo/vmlinuz}
static: {A: b}
%s
`

// TestHostFile: what the host's file says counts for the broker and for every unit.
func TestHostFile(t *testing.T) {
	needs(t)
	h := &host{page: readPage(t, "../../docs/systemd.md")}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	h.container = boot(t, dir, "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guestDirectory(t)+":/var/lib/vmcred/images/demo")
	h.do(t, "umask 077; mkdir -p /srv/secrets /srv/audit; printf one > /srv/secrets/one")
	h.write(t, "/etc/vmcred/vms/bare-vm.yaml", fmt.Sprintf(bareVM, ""))
	h.write(t, "/etc/vmcred/vms/file-vm.yaml", fmt.Sprintf(bareVM, "credentials:\n  host-one: {file: /srv/secrets/one}"))
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
	}{
		{"a file from elsewhere", testElsewhere},
		{"a log elsewhere", testLogElsewhere},
		{"a host's file that is wrong", testHostFileBroken},
		{"no broker, and nothing to ask for", testNoBroker},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			t.Log(h.do(t, "journalctl --no-pager --boot --lines=60"))
			t.FailNow()
		}
	}
}

// wantRefusedFor: the unit fails for good, its status has the words, and systemd reads
// nothing for it.
func (h *host) wantRefusedFor(t *testing.T, words string) {
	t.Helper()
	h.wantSaid(t, 1, "systemctl start "+fileUnit)
	h.wantSaid(t, 3, "journalctl --sync; systemctl status --no-pager --full "+fileUnit, words, "status=78/CONFIG")
	h.do(t, "! systemctl cat "+fileUnit+" | grep ^LoadCredential=")
	h.do(t, "systemctl reset-failed "+fileUnit)
}

func testElsewhere(t *testing.T, h *host) {
	h.do(t, "systemctl daemon-reload")
	h.wantRefusedFor(t, "file-vm.yaml:8:3: credentials.host-one.file: /srv/secrets/one is in none of the folders")
	h.wantSaid(t, 78, "vmcred check file-vm", "file-vm.yaml:8:3: credentials.host-one.file: /srv/secrets/one is in none of the folders")
	h.wantSaid(t, 78, "vmcred units file-vm", "/srv/secrets/one is in none of the folders")
}

// testLogElsewhere: the broker may write where the host's file wants the log.
func testLogElsewhere(t *testing.T, h *host) {
	h.write(t, hostFile, "version: 1\nsources: [/srv/secrets]\naudit: /srv/audit/vmcred.log\n")
	h.do(t, "systemctl daemon-reload; systemctl start "+fileUnit+"; systemctl stop "+fileUnit)
	h.wantSaid(t, 0, "vmcred audit show --vm file-vm", "release   host-one → HOST_ONE  3 bytes by smbios", ", "+fileUnit)
	h.wantSaid(t, 0, "vmcred audit verify", "/srv/audit/vmcred.log: whole, ")
	h.do(t, "test ! -e /var/log/vmcred/audit.log")
	h.do(t, "systemd-analyze security --no-pager --threshold=15 vmcred-broker.service")
}

// testHostFileBroken: nobody knows where files may be, which is nothing to a VM that has
// none. Mended, it counts again.
func testHostFileBroken(t *testing.T, h *host) {
	good := h.do(t, "cat "+hostFile)
	h.write(t, hostFile, "version: 1\nsorces: [/srv/secrets]\n")
	h.do(t, "systemctl daemon-reload")
	h.wantRefusedFor(t, "vmcred.yaml:2:1: sorces: there is no such key")
	h.do(t, "systemctl start vmcred@bare-vm; systemctl stop vmcred@bare-vm")
	h.write(t, hostFile, good)
	h.do(t, "systemctl daemon-reload; systemctl start "+fileUnit+"; systemctl stop "+fileUnit)
}

// testNoBroker: a VM without credentials runs as it would without.
func testNoBroker(t *testing.T, h *host) {
	h.do(t, "systemctl mask --runtime --now "+sockets+" "+brokerUnit+"; systemctl start vmcred@bare-vm; systemctl stop vmcred@bare-vm")
	h.wantSaid(t, 1, "systemctl start "+fileUnit)
	h.do(t, "systemctl stop "+fileUnit+"; systemctl unmask --runtime "+sockets+" "+brokerUnit)
}
