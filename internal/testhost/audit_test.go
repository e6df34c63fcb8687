// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// auditLog is where the broker puts on record what every unit is given.
const (
	auditDir   = "/var/log/vmcred"
	auditLog   = auditDir + "/audit.log"
	brokerUnit = "vmcred-broker.service"
)

// testAudit: what the unit's VM was given is in root's log, whole, and the log's end in
// the journal, before the values were there.
func testAudit(t *testing.T, h *host) {
	shown := h.do(t, "vmcred audit show")
	for name, guest := range credentials() {
		if want := fmt.Sprintf("test-vm       release   host-%s → %s  ", name, guest); strings.Count(shown, want) != 1 || !strings.Contains(shown, ", "+unitName+"\n") {
			t.Errorf("not once %q in the log, or not for %s:\n%s", want, unitName, shown)
		}
	}
	records := h.matching(t, "_SYSTEMD_UNIT="+brokerUnit+" + _SYSTEMD_INVOCATION_ID="+h.starts[0])
	head := slices.IndexFunc(records, func(r record) bool { return r["VMCRED_AUDIT_HEAD"] != "" })
	given := slices.IndexFunc(records, func(r record) bool { return r["VMCRED_GUEST"] != "" })
	if head < 0 || head > given || records[head]["VMCRED_AUDIT_LOG"] != auditLog {
		t.Fatalf("the log's end is record %d of the journal, the values are record %d:\n%s", head, given, tail(records))
	}
	said := h.do(t, "vmcred audit verify --head "+records[head]["VMCRED_AUDIT_HEAD"])
	if !strings.Contains(said, "audit.log: whole, ") {
		t.Error(said)
	}
	h.do(t, `test "$(stat -c '%a %U' `+auditDir+` `+auditLog+` `+auditLog+`.key | sort -u | tr '\n' ,)" = "600 root,700 root,"`)
}

// testAuditFull: no room for a record, no secret: the VM is not started.
func testAuditFull(t *testing.T, h *host) {
	h.do(t, "mount -t tmpfs -o size=64k,mode=0700 none "+auditDir+
		" && (umask 077; vmcred audit key >/dev/null; head -c 1M /dev/zero > "+auditDir+"/full || :); systemctl restart "+brokerUnit)
	if said, err := h.try("systemctl start " + unitName); err == nil {
		t.Errorf("it starts: %s", said)
	}
	said := h.do(t, "systemctl stop "+unitName+"; journalctl --sync; journalctl --no-pager --output=cat --unit "+unitName+" | tail -60")
	for _, want := range []string{"it cannot be put on record: audit log " + auditLog + ": cannot be written: ", "no space left on device"} {
		if !strings.Contains(said, want) {
			t.Errorf("the journal does not say %q:\n%s", want, said)
		}
	}
	h.do(t, "umount "+auditDir+"; systemctl restart "+brokerUnit+"; systemctl reset-failed "+unitName)
}
