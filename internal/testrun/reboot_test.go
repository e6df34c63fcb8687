// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// A guest's reboot is a new start: it brings the value of then, not that of the
// start before.
func TestRebootBringsTheNewValue(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		name := "host-api-key"
		h := newHost(t, k, []credentialFile{{name, text(32)}})
		args, _ := h.bySource(t, "--credentials", probe.WordReboot)
		r := start(t, h.command(t, nil, append([]string{"run", h.file()}, args...)...))
		r.await(t, &r.out, inTable(h.all[0].value))
		h.all[0].value = text(40)
		next := filepath.Join(h.dir, "next")
		h.write(t, next, h.all[0].value)
		if err := os.Rename(next, filepath.Join(h.creds, name)); err != nil {
			t.Fatal(err)
		}
		r.await(t, &r.out, inTable(h.all[0].value))
		r.stop(t)
		h.clean(t)
	})
}

// inTable is what the guest reports of the string with this value.
func inTable(value []byte) string {
	s := "io.systemd.credential.binary:HOST_API_KEY=" + base64.StdEncoding.EncodeToString(value)
	return fmt.Sprintf("bytes=%d sha256=%x", len(s), sha256.Sum256([]byte(s)))
}
