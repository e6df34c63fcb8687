// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/leak"
)

// testVars does what docs/vars.md says: the broker hands a real guest what is in the store.
func testVars(t *testing.T, h *host) {
	p := readPage(t, "../../docs/vars.md")
	h.do(t, "rm /etc/systemd/system-generators/vmcred-generator") // which the step before has masked
	said := strings.Join(p.follow(t, h.container, "Make some"), "")
	if !strings.Contains(said, "host-api-key      HOST_API_KEY") && !strings.Contains(said, "HOST_API_KEY") {
		t.Errorf("the commands do not say what it would get:\n%s", said)
	}
	h.do(t, "rm -r /etc/systemd/system/"+unitName+".d; systemctl daemon-reload")
	// The guest says digests with this only.
	h.do(t, "printf 'static:\\n  DEMO_NONCE: "+h.nonce+"\\n' >> "+vmFile+"; systemctl daemon-reload")
	first := h.startVars(t)
	if said := h.do(t, "vmcred status test-vm; vmcred status"); strings.Contains(said, "restart needed") || strings.Count(said, "the same") != 4 || !strings.Contains(said, "broker: up, process ") {
		t.Errorf("status, of a VM that has the values of now:\n%s", said)
	}
	p.follow(t, h.container, "New values")
	if said := h.do(t, "vmcred status test-vm"); !strings.Contains(said, ", restart needed\n") || strings.Count(said, "a newer version") != 2 {
		t.Errorf("status, of a VM whose values changed:\n%s", said)
	}
	said = h.do(t, "vmcred restart test-vm")
	if !strings.Contains(said, "host-api-key      HOST_API_KEY      44     changed\n") || !strings.Contains(said, "host-db-password  HOST_DB_PASSWORD  44     the same\n") {
		t.Errorf("restart does not say what changed:\n%s", said)
	}
	second := h.varsArrived(t)
	if first["api-key"] == second["api-key"] || first["db-password"] != second["db-password"] {
		t.Error("the new value is the old one, or the other one changed")
	}
	h.foreign(t, p, second["api-key"])
	p.wantAllDone(t)
	h.searchVars(t, second)
	shown := h.do(t, "systemctl stop "+unitName+"; vmcred audit show --vm test-vm --since 10m | tail -4")
	if strings.Count(shown, "release   host-api-key → HOST_API_KEY  44 bytes  ") != 2 || strings.Count(shown, ", "+unitName) != 4 {
		t.Errorf("the log does not say what the broker handed out:\n%s", shown)
	}
}

// foreign does what the page says of units that are not vmcred's.
func (h *host) foreign(t *testing.T, p *page, value string) {
	t.Helper()
	const unit = "foreign-vm.service"
	h.do(t, "systemctl stop "+unitName) // the guests are two for this machine
	journal := followJournal(t, h.container, unit)
	said := strings.Join(p.follow(t, h.container, "Units that are not vmcred's"), "")
	for _, name := range []string{"host-api-key", "vmcred.transfer-list"} {
		if want := "\nLoadCredential=" + name + ":/run/vmcred/broker.sock\n"; strings.Count(said, want) != 1 {
			t.Errorf("the unit does not ask for %s:\n%s", name, said)
		}
	}
	journal.wait(t, "the guest's word", func(r record) bool { return r.message() == fmt.Sprintf("demo: api-key %d bytes", len(value)) })
	h.wantSaid(t, 0, "vmcred audit show --vm foreign-vm", "release   host-api-key → HOST_API_KEY  44 bytes  ", "release   host-api-key → HOST_API_KEY  44 bytes by smbios", ", "+unit)
	h.wantSaid(t, 0, "systemctl show --property=Wants "+unit, "vmcred-broker.socket")
	// Without the list it is not started.
	h.do(t, "systemctl stop "+unit+"; umask 022; printf '[Service]\nLoadCredential=\nLoadCredential=host-api-key:/run/vmcred/broker.sock\n' > /etc/systemd/system/"+unit+".d-list; "+
		"mkdir /etc/systemd/system/"+unit+".d; mv /etc/systemd/system/"+unit+".d-list /etc/systemd/system/"+unit+".d/no-list.conf; systemctl daemon-reload; systemctl start "+unit+" || :")
	journal.wait(t, "why it is refused", func(r record) bool {
		return strings.Contains(r.message(), "the transfer list is expected, and not in ")
	})
	h.do(t, "systemctl stop "+unit+" || :; systemctl reset-failed "+unit+" || :; rm -r /etc/systemd/system/"+unit+"* "+"/etc/vmcred/vms/foreign-vm.yaml; systemctl daemon-reload")
}

// searchVars: while the VM runs, its values are in the store and nowhere else: not below
// /run/credentials, in no log, no argument, no environment, no file.
func (h *host) searchVars(t *testing.T, values map[string]string) {
	t.Helper()
	hay := haystack{Since: h.booted, Values: maps.Clone(values), Meant: map[string]string{"the store": varsDir}}
	var report leak.Report
	play(t, h.container, "", "search", hay, &report)
	seen := 0
	for _, f := range report.Findings {
		if f.Needle == planted {
			seen++
		} else {
			t.Errorf("found %s", f)
		}
	}
	if seen == 0 || len(report.Meant) < len(values) {
		t.Errorf("the search shows nothing: %d planted, %d in the store", seen, len(report.Meant))
	}
}

// startVars starts the VM, and is varsArrived.
func (h *host) startVars(t *testing.T) map[string]string {
	t.Helper()
	h.do(t, "systemctl restart "+unitName)
	return h.varsArrived(t)
}

// varsArrived returns what the guest of the last start has: the store's values.
func (h *host) varsArrived(t *testing.T) map[string]string {
	t.Helper()
	heard := h.heard(t, h.started(t))
	values := map[string]string{}
	for _, name := range []string{"api-key", "db-password"} {
		b, err := os.ReadFile(h.path("/var/lib/vmcred/vars/test-vm-secrets/" + name))
		if err != nil {
			t.Fatal(err)
		}
		values[name] = string(b)
		if line := fmt.Sprintf("%s 44 bytes sha256 %s", name, digest(h.nonce, string(b))); !slices.Contains(heard, line) {
			t.Errorf("the guest did not say %q; it said\n  %s", line, strings.Join(heard, "\n  "))
		}
	}
	if left := h.do(t, "find /run/credentials/"+unitName+" -type f 2>/dev/null || :"); left != "" {
		t.Errorf("values are files of the host's: %s", left)
	}
	return values
}
