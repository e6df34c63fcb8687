// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const auditDir = "/var/lib/vmcred/vms/test-vm"

// testAudit: what the unit's VM was given is in its log, whole, and the log's end in
// the journal, before the values were there.
func testAudit(t *testing.T, h *host) {
	shown := h.do(t, "vmcred audit show --log "+auditDir+"/audit.log")
	for name, guest := range credentials() {
		if want := fmt.Sprintf("test-vm       release   host-%s → %s  ", name, guest); strings.Count(shown, want) != 1 || !strings.Contains(shown, ", "+unitName+"\n") {
			t.Errorf("not once %q in the log, or not for %s:\n%s", want, unitName, shown)
		}
	}
	records := h.records(t, h.starts[0])
	head := slices.IndexFunc(records, func(r record) bool { return r["VMCRED_AUDIT_HEAD"] != "" })
	given := slices.IndexFunc(records, func(r record) bool { return r["VMCRED_GUEST"] != "" })
	if head < 0 || head > given || records[head]["VMCRED_AUDIT_LOG"] != auditDir+"/audit.log" {
		t.Fatalf("the log's end is record %d of the journal, the values are record %d:\n%s", head, given, tail(records))
	}
	said := h.do(t, "vmcred audit verify --log "+auditDir+"/audit.log --head "+records[head]["VMCRED_AUDIT_HEAD"])
	if !strings.Contains(said, "audit.log: whole, ") {
		t.Error(said)
	}
	h.do(t, `test "$(stat -c '%a %U' `+auditDir+` `+auditDir+`/audit.log `+auditDir+`/audit.log.key | sort -u | tr '\n' ,)" = "600 `+vmUser+`,700 `+vmUser+`,"`)
}

// testAuditFull: no room for a record, no secret: the VM is not started.
func testAuditFull(t *testing.T, h *host) {
	h.do(t, "mount -t tmpfs -o size=64k,mode=0700,uid=$(id -u "+vmUser+") none "+auditDir+
		" && setpriv --reuid="+vmUser+" --regid="+vmUser+" --clear-groups sh -c 'umask 077; VMCRED_AUDIT="+auditDir+"/audit.log vmcred audit key >/dev/null; head -c 1M /dev/zero > "+auditDir+"/full || :'")
	if said, err := h.try("systemctl start " + unitName); err == nil {
		t.Errorf("it starts: %s", said)
	}
	id := h.do(t, "systemctl stop "+unitName+"; journalctl --sync; journalctl --no-pager --output=cat --unit "+unitName+" | tail -40")
	if !strings.Contains(id, "audit log "+auditDir+"/audit.log: cannot be written: ") || !strings.Contains(id, "no space left on device") {
		t.Errorf("the journal does not say why:\n%s", id)
	}
	h.do(t, "umount "+auditDir+"; systemctl reset-failed "+unitName)
}
