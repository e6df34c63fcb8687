// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Broker is the unit that hands out secrets, BrokerSocket the one of the socket at which
// systemd asks it.
const (
	Broker       = "vmcred-broker.service"
	BrokerSocket = "vmcred-broker.socket"
)

// brokerLogs is where the broker's own unit lets it write a log.
const brokerLogs = "/var/log/vmcred"

// BrokerFile is the drop-in for the broker's unit if the audit log, an absolute path, is
// not where that unit lets it write; false if it needs none.
func BrokerFile(audit string) (File, bool) {
	dir := filepath.Dir(audit)
	if audit == "" || dir == brokerLogs || strings.HasPrefix(dir, brokerLogs+"/") {
		return File{}, false
	}
	text := fmt.Sprintf("# The audit log, as the host's file names it.\n\n[Service]\nReadWritePaths=%s\n", quote("-"+dir))
	return File{filepath.Join(Broker+".d", generatedName), []byte(text)}, true
}
