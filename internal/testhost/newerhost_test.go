// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// newerSystem is the root directory of a system with a newer systemd than this machine's.
func newerSystem(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("VMCRED_HOST_ROOT")
	if dir == "" {
		t.Skip("SKIPPED, no newer systemd started a unit: needs VMCRED_HOST_ROOT=$(scripts/newer-host) (package mmdebstrap)")
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/lib/systemd/systemd")); err != nil || !filepath.IsAbs(dir) {
		t.Fatalf("VMCRED_HOST_ROOT=%s is no root directory of a system with systemd: %v", dir, err)
	}
	return dir
}

// TestBrokerNewerHost is TestBroker in a host whose systemd is a newer one. It asks for
// credentials in other ways than 252 does.
func TestBrokerNewerHost(t *testing.T) {
	c := brokerHost(t, newerSystem(t))
	version, _, _ := strings.Cut(c.do(t, "systemctl --version"), "\n")
	t.Log(version)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.try("journalctl --no-pager --boot --lines=80")
			t.Log(out)
		}
	})
	tryBroker(t, c)
}

// TestPeerNewerHost is TestPeer there: the name that systemd asks from is its own affair.
func TestPeerNewerHost(t *testing.T) { tryPeer(t, newerSystem(t)) }

// TestStartsNewerHost is TestStarts there.
func TestStartsNewerHost(t *testing.T) { tryStarts(t, newerSystem(t)) }

const ownVM = `version: 1
hypervisor: cloud-hypervisor
memory: 128MiB
boot: {kernel: /usr/bin/true, cmdline: wait}
guest: {systemd: 257}
credentials:
  host-api-key: {var: gen/api-key}
  host-file: {file: /run/secrets/own}
  host-password: {var: gen/db-password}
`

// testOwn: our runner takes what is in the store from the broker, systemd hands it the
// file, and the guest has all of it. The guest is the stand-in's, which says digests.
func testOwn(t *testing.T, c *container) {
	const unit = "vmcred@own-vm.service"
	(&host{container: c}).giveKVM(t)
	c.write(t, "/run/secrets/own", "of a file")
	c.write(t, "/etc/vmcred/vms/own-vm.yaml", ownVM)
	c.write(t, "/etc/systemd/system/"+unit+".d/path.conf", "[Service]\nEnvironment=PATH="+vmmDir+":/usr/bin\n")
	c.do(t, "chmod 600 /run/secrets/own; systemctl daemon-reload; systemctl start "+unit)
	id := strings.TrimSpace(c.do(t, "systemctl show --value --property=InvocationID "+unit))
	h := &host{container: c, journal: followJournal(t, c, unit)}
	h.journal.wait(t, "the guest's last word", func(r record) bool { return r.message() == probe.Last })
	said := h.records(t, id)
	for name, value := range map[string]string{"HOST_API_KEY": "the api key", "HOST_PASSWORD": "the password", "HOST_FILE": "of a file"} {
		text := "io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString([]byte(value))
		want := fmt.Sprintf("bytes=%d sha256=%x", len(text), sha256.Sum256([]byte(text)))
		if !slices.ContainsFunc(said, func(r record) bool { return strings.HasSuffix(r.message(), want) }) {
			t.Errorf("the guest does not have %s:\n%s", name, tail(said))
		}
	}
	shown := c.do(t, "vmcred audit show --vm own-vm; vmcred audit show --vm own-vm --json; systemctl stop "+unit)
	for _, want := range []string{"release   host-api-key → HOST_API_KEY  11 bytes", "release   host-password → HOST_PASSWORD  12 bytes", "release   host-file → HOST_FILE  9 bytes", unit} {
		if !strings.Contains(shown, want) {
			t.Errorf("the log does not say %q:\n%s", want, shown)
		}
	}
}
