// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	sealedUnit = "vmcred@sealed-vm.service"
	sealed     = "/etc/credstore.encrypted"
)

const sealedVM = `version: 1
hypervisor: qemu
memory: 256MiB
stop-timeout: 0s
boot: {kernel: /var/lib/vmcred/images/demo/vmlinuz, initrd: /var/lib/vmcred/images/demo/initrd, cmdline: %q}
credentials:
  host-api-key: {encrypted: ` + sealed + `/api-key}
  host-db-password: {encrypted: ` + sealed + `/db-password}
static:
  DEMO_NONCE: %s
`

// TestEncrypted: what systemd-creds has sealed with the host's own key is opened by
// systemd alone, and reaches the guest of the VM's unit.
func TestEncrypted(t *testing.T) {
	needs(t)
	h := &host{page: readPage(t, "../../docs/systemd.md"), nonce: rand.Text()}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	h.page.install(t, "../..", dest, filepath.Join(dir, "build"))
	h.container = boot(t, dir, "--bind="+filepath.Join(dest, "usr/local")+":/usr/local",
		"--bind-ro="+guestDirectory(t)+":/var/lib/vmcred/images/demo")
	h.write(t, "/etc/vmcred/vms/sealed-vm.yaml", fmt.Sprintf(sealedVM, bootsTo, h.nonce))
	h.do(t, "install -d -m 700 "+sealed+"; systemd-creds setup")
	h.journal = followJournal(t, h.container, sealedUnit)
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
	}{
		{"sealed values arrive", testSealed},
		{"a plain run cannot open them", testSealedPlain},
		{"what cannot be opened is not started", testSealedWrong},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			t.Log(h.do(t, "journalctl --no-pager --boot --lines=80"))
			t.FailNow()
		}
	}
}

// seal writes the file of a credential under the name that is sealed in.
func (h *host) seal(t *testing.T, file, name, value string) {
	t.Helper()
	h.do(t, fmt.Sprintf("printf %%s '%s' | systemd-creds encrypt --with-key=host --name=%s - %s/%s", value, name, sealed, file))
}

func testSealed(t *testing.T, h *host) {
	values := map[string]string{"api-key": rand.Text(), "db-password": strings.Repeat(rand.Text(), 20)}
	for name, value := range values {
		h.seal(t, name, "host-"+name, value)
	}
	h.do(t, "systemctl daemon-reload")
	h.wantSaid(t, 0, "vmcred check sealed-vm", "host-api-key, host-db-password not looked for: "+sealedUnit+" brings it by LoadCredentialEncrypted=")
	h.wantSaid(t, 0, "cat "+generated+"/"+sealedUnit+".d/10-vmcred.conf", "\nLoadCredentialEncrypted=host-api-key:"+sealed+"/api-key\n")
	h.do(t, "systemctl start "+sealedUnit)
	said := h.heard(t, strings.TrimSpace(h.do(t, "systemctl show --value --property=InvocationID "+sealedUnit)))
	for name, value := range values {
		line := fmt.Sprintf("%s %d bytes sha256 %s", name, len(value), digest(h.nonce, value))
		if !slices.Contains(said, line) {
			t.Errorf("the guest did not say %q; it said\n  %s", line, strings.Join(said, "\n  "))
		}
		h.do(t, "! grep -rF '"+value+"' /etc /var")
		h.wantSaid(t, 0, "vmcred audit show --vm sealed-vm", "release   host-"+name+" → ")
	}
	h.do(t, "systemctl stop "+sealedUnit)
}

func testSealedPlain(t *testing.T, h *host) {
	for _, command := range []string{"run", "plan"} {
		h.wantSaid(t, 78, "vmcred "+command+" sealed-vm", "host-api-key: systemd alone can decrypt "+sealed+"/api-key", "hint: start it as "+sealedUnit)
	}
}

// testSealedWrong: sealed for another name, changed, or not there: systemd does not start
// the unit, once and for all.
func testSealedWrong(t *testing.T, h *host) {
	h.seal(t, "other", "host-other", "none of it")
	for what, change := range map[string]string{
		"another's": "cp " + sealed + "/other " + sealed + "/api-key",
		"changed":   "sed -i '1s/./-/50' " + sealed + "/api-key",
		"missing":   "rm " + sealed + "/api-key",
	} {
		h.do(t, "cp -p "+sealed+"/api-key /tmp/kept; "+change)
		if said, err := h.try("systemctl start " + sealedUnit); err == nil {
			t.Errorf("%s: it starts: %s", what, said)
		}
		h.wantSaid(t, 0, "systemctl show --property=ActiveState,SubState,NRestarts,ExecMainStatus "+sealedUnit,
			"ActiveState=failed", "SubState=failed", "NRestarts=0", "ExecMainStatus=243")
		h.do(t, "systemctl stop "+sealedUnit+"; systemctl reset-failed "+sealedUnit)
		if what == "missing" {
			h.wantSaid(t, 78, "vmcred check sealed-vm", sealed+"/api-key does not exist", "make it: systemd-creds encrypt --name=host-api-key FILE "+sealed+"/api-key")
		}
		h.do(t, "mv /tmp/kept "+sealed+"/api-key")
	}
	h.do(t, "systemctl start "+sealedUnit+"; systemctl stop "+sealedUnit) // it was those changes
}
