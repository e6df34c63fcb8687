// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// A guest that reads a part of its table, as an old systemd would that the file calls
// a new one, never says that it is up: that is a start that failed.
func TestACutTableIsAFailedStart(t *testing.T) {
	onCloudHypervisor(t, func(t *testing.T, k kind) {
		h := newHost(t, k, k.few())
		h.more = "vsock: {cid: 3}\nnotify: guest\nstart-timeout: 1s\n"
		args, _ := h.bySource(t, "--credentials", probe.WordReady+" "+probe.WordCut(100)+" "+probe.WordWait)
		r := start(t, h.command(t, nil, append([]string{"run", h.file()}, args...)...))
		if code := r.end(t); code != 1 || !strings.Contains(r.err.String(), "no READY=1 from the guest within 1s") {
			t.Errorf("it exits %d: %s", code, r.err.String())
		}
		h.clean(t)
	})
}
