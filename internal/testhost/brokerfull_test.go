// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stateDir is where the broker writes down what each start was given.
const stateDir = "/run/vmcred/.broker"

// testNoRoom: there is no room for a record, so nothing is handed out, either way; once there
// is, the same unit starts.
func testNoRoom(t *testing.T, c *container) {
	const no = "it cannot be put on record: audit log " + auditLog + ": cannot be written: "
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-api-key: {var: gen/api-key}\n"))
	c.writeChecker(t, foreignUnit, "1min", "host-api-key")
	c.writeRefused(t, "  host-api-key: {var: gen/api-key}\n")
	c.do(t, "systemctl stop "+brokerUnit+"; mount -t tmpfs -o size=64k,mode=0700 none "+auditDir+
		" && (umask 077; vmcred audit key >/dev/null; head -c 1M /dev/zero > "+auditDir+"/full || :)")
	c.saysAbout(t, foreignUnit, "status=243/CREDENTIALS", "refused host-api-key for foreign.service: "+no, "no space left on device")
	c.saysAbout(t, refusedUnit, "status=1/", no, "no space left on device")
	if b, err := os.ReadFile(c.path(auditLog)); strings.Contains(string(b), `"release"`) {
		t.Errorf("on record, where there is no room: %q %v", b, err)
	}
	if said := c.do(t, "vmcred status"); !strings.Contains(said, "no space left on device") {
		t.Errorf("status does not say why nothing is handed out:\n%s", said)
	}
	c.do(t, "rm "+auditDir+"/full; systemctl start "+foreignUnit+"; vmcred audit verify")
	if got := c.checked(t, foreignUnit); got["host-api-key"] != sumOf("the api key") {
		t.Errorf("with room again it was given %v", got)
	}
	c.do(t, "systemctl stop "+brokerUnit+"; umount "+auditDir)
	// No room to write down the versions: a later question could not be kept to them.
	c.do(t, "mount -t tmpfs -o size=4k,mode=0700 none "+stateDir+"; head -c 1M /dev/zero > "+stateDir+"/full || :")
	c.saysAbout(t, foreignUnit, "status=243/CREDENTIALS", "it cannot be written down what this start is given: ")
	c.saysAbout(t, refusedUnit, "status=1/", "it cannot be written down what this start is given: ", "is /run full?")
	if left, _ := filepath.Glob(c.path(stateDir) + "/*.new"); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	c.do(t, "systemctl stop "+brokerUnit+"; umount "+stateDir)
}
