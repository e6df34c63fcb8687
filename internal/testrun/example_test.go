// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
)

// A file that says all that a VM can have boots on the real cloud-hypervisor, with
// its values by --credentials: each arrives, whatever source the file names, and the
// guest's word makes the VM ready.
func TestWholeFile(t *testing.T) {
	needRoot(t, "it makes a tap, and the VM's two users")
	k := realCloudHypervisor(t)
	if d, err := virtiofs.Probe(t.Context(), virtiofs.Options{}); err != nil || d.Legacy {
		t.Skipf("SKIPPED, nothing was shown of the whole file: needs a virtiofsd in Rust on PATH: %v %v", d, err)
	}
	var all []credentialFile
	for _, name := range []string{"host-api-key", "host-db-password", "host-jwt-secret", "host-license", "host-tls-key"} {
		all = append(all, credentialFile{name, text(40)})
	}
	h := newHostOf(t, k, 0, all)
	makeUser(t, h.name)
	makeUserNamed(t, "vmshare-"+h.name)
	h.writeWholeFile(t)
	r := start(t, h.command(t, nil, "run", h.file(), "--credentials", h.creds))
	r.await(t, &r.err, "the guest is up after ")
	r.awaitGuest(t)
	report, err := probe.Parse(strings.NewReader(r.out.String()))
	if err != nil || !report.SaidReady() {
		t.Errorf("%v: %s", err, r.out.String())
	}
	if want := "it read its SMBIOS table to the end, with 7 credentials"; !strings.Contains(r.err.String(), want) {
		t.Errorf("it does not say %q: %s", want, r.err.String())
	}
	h.wantStatus(t)
	if daemons := of("--shared-dir=" + filepath.Join(h.dir, "store") + "\x00"); len(daemons) == 0 {
		t.Error("nobody shares the directory")
	}
	r.stop(t)
	h.clean(t)
	if left := of(h.dir); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func (h *host) writeWholeFile(t *testing.T) {
	t.Helper()
	const tap = "vmcred-whole0"
	if !makeTap(t, tap) {
		t.Skip("SKIPPED, nothing was shown of the whole file: needs to make a tap")
	}
	b, err := os.ReadFile("testdata/test-vm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(h.dir, "store")
	err = errors.Join(
		os.WriteFile(h.file(), []byte(strings.NewReplacer("DIR", h.dir, "TAP", tap, "@VM", "@"+h.name).Replace(string(b))), 0o644),
		os.WriteFile(filepath.Join(h.dir, "initrd"), text(5000), 0o644),
		os.Mkdir(store, 0o755), os.Chmod(store, 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	h.sparse(t, "data.img", 1<<20)
	if out, err := exec.Command("chown", "vmcred-"+h.name, filepath.Join(h.dir, "data.img")).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}

// wantStatus: status says by whose word the VM is ready, and what that proves.
func (h *host) wantStatus(t *testing.T) {
	t.Helper()
	r := start(t, h.command(t, nil, "status", "--json", h.file()))
	if code := r.end(t); code != 0 {
		t.Errorf("status exits %d: %s", code, r.err.String())
	}
	var got struct {
		State       string
		Credentials []struct{ Guest, Proven string }
	}
	if err := json.Unmarshal([]byte(r.out.String()), &got); err != nil {
		t.Fatal(err)
	}
	if got.State != "running" || len(got.Credentials) != 8 {
		t.Errorf("status says %+v", got)
	}
	for _, c := range got.Credentials {
		if c.Proven != "yes" {
			t.Errorf("%s: proven: %s", c.Guest, c.Proven)
		}
	}
}
