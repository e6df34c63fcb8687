// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	varsDir     = "/var/lib/vmcred/vars"
	checkedDir  = "/run/checked"
	foreignUnit = "foreign.service"
	foreignVM   = "/etc/vmcred/vms/foreign.yaml"
)

// checker is a unit that is not ours: what it was given is in a file afterwards, as digests.
const checker = `[Service]
Type=oneshot
TimeoutStartSec=%s
TimeoutStopSec=2s
ExecStart=sh -c 'cd "$CREDENTIALS_DIRECTORY" && sha256sum -- * > ` + checkedDir + `/%%n.new && mv ` + checkedDir + `/%%n.new ` + checkedDir + `/%%n'
%s
`

// brokerHost is a host with a broker and a store, whose VMs have no guests. Its systemd is
// that of the system below a root directory; empty: this machine's.
func brokerHost(t *testing.T, system string) *container {
	t.Helper()
	needs(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	dest := filepath.Join(dir, "dest")
	readPage(t, "../../docs/systemd.md").install(t, "../..", dest, filepath.Join(dir, "build"))
	c := bootSystem(t, system, dir, "--bind="+filepath.Join(dest, "usr/local")+":/usr/local", "--bind-ro="+program+":"+self, "--bind-ro="+program+":"+vmmDir+"/cloud-hypervisor")
	// Where there is no QEMU: no VM here gets further than to its version.
	c.write(t, "/usr/local/sbin/qemu-system-x86_64", "#!/bin/sh\necho QEMU emulator version 7.2.0\n")
	c.do(t, "chmod 755 /usr/local/sbin/qemu-system-x86_64; mkdir -m 700 "+checkedDir+"; systemctl enable --now vmcred-broker.socket vmcred-runner.socket")
	c.write(t, "/etc/vmcred/vmcred.yaml", "version: 1\nvars: "+varsDir+"\n")
	return c
}

// put writes a value into the store, by a rename.
func (c *container) put(t *testing.T, generator, file, value string) {
	t.Helper()
	dir := filepath.Join(varsDir, generator)
	c.do(t, "install -d -m 700 "+dir)
	if err := os.WriteFile(c.path(dir+"/."+file), []byte(value), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(c.path(dir+"/."+file), c.path(dir+"/"+file)); err != nil {
		t.Fatal(err)
	}
}

// foreignFile is a VM's file whose unit is not ours.
func foreignFile(unit, credentials string) string {
	return "version: 1\nhypervisor: qemu\nboot: {kernel: /usr/bin/true}\nunit: " + unit + "\ncredentials:\n" + credentials
}

// writeChecker writes a unit that is not ours, with these LoadCredential= from the broker.
func (c *container) writeChecker(t *testing.T, unit, timeout string, ids ...string) {
	t.Helper()
	var lines []string
	for _, id := range ids {
		lines = append(lines, "LoadCredential="+id+":/run/vmcred/broker.sock")
	}
	c.write(t, "/etc/systemd/system/"+unit, fmt.Sprintf(checker, timeout, ""))
	// Behind the drop-in that the generator writes: the last of one name counts.
	c.write(t, "/etc/systemd/system/"+unit+".d/50-test.conf", "[Service]\n"+strings.Join(lines, "\n")+"\n")
	c.do(t, "systemctl daemon-reload; rm -f "+checkedDir+"/"+unit)
}

// checked is what a checker was given: digests by name. nil: it did not run.
func (c *container) checked(t *testing.T, unit string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(c.path(checkedDir + "/" + unit))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			out[name] = sum
		}
	}
	return out
}

func sumOf(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// refused starts a unit, which must fail, and returns what its status shows.
func (c *container) refused(t *testing.T, unit string) string {
	t.Helper()
	if out, err := c.try("rm -f " + checkedDir + "/" + unit + "; systemctl start " + unit); err == nil {
		t.Errorf("%s starts: %s", unit, out)
	}
	if got := c.checked(t, unit); got != nil {
		t.Errorf("%s ran, with %v", unit, got)
	}
	// A failed unit is started again, and again: its status is that of the last try.
	status := c.do(t, "journalctl --sync; systemctl status --no-pager --full --lines=50 "+unit+" || :")
	c.do(t, "systemctl stop "+unit+"; systemctl reset-failed "+unit+" 2>/dev/null || :")
	return status
}

func TestBroker(t *testing.T) { tryBroker(t, brokerHost(t, "")) }

func tryBroker(t *testing.T, c *container) {
	c.put(t, "gen", "api-key", "the api key")
	c.put(t, "gen", "db-password", "the password")
	c.do(t, "useradd --system --no-create-home --shell /usr/sbin/nologin vmcred-refused-vm")
	for _, step := range []struct {
		name string
		do   func(*testing.T, *container)
	}{
		{"a unit that is not ours", testForeign},
		{"a unit of our own", testOwn},
		{"what a unit that is not ours does not get", testForeignRefused},
		{"what a runner does not get", testRunnerRefused},
		{"a record first", testRecordFirst},
		{"no room for a record", testNoRoom},
		{"no copy in its memory", testNoCopy},
		{"a broker that is down", testBrokerDown},
		{"a broker that hangs", testBrokerHangs},
		{"a socket of somebody else's", testSquatted},
		{"an answer that is cut", testCut},
		{"one version for each start", testOneVersion},
		{"a log that was changed", testTampered},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, c) }) {
			t.FailNow()
		}
	}
}

// testForeign: systemd fetches the values for a unit that is not ours, with the lines that
// the generator writes.
func testForeign(t *testing.T, c *container) {
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-api-key: {var: gen/api-key}\n  host-db-password: {var: gen/db-password}\n"))
	c.writeChecker(t, foreignUnit, "1min")
	c.do(t, "systemctl start "+foreignUnit)
	got := c.checked(t, foreignUnit)
	if got["host-api-key"] != sumOf("the api key") || got["host-db-password"] != sumOf("the password") || got["vmcred.transfer-list"] == "" {
		t.Errorf("it was given %v", got)
	}
	shown := c.do(t, "vmcred audit show --vm foreign")
	for _, want := range []string{"release   host-api-key → HOST_API_KEY  11 bytes", "release   host-db-password → HOST_DB_PASSWORD  12 bytes", foreignUnit} {
		if !strings.Contains(shown, want) {
			t.Errorf("the log does not say %q:\n%s", want, shown)
		}
	}
	if exposed := c.do(t, "systemd-analyze security --no-pager --threshold=15 "+brokerUnit+" | tail -1; vmcred status"); !strings.Contains(exposed, "OK") {
		t.Error(exposed)
	}
}

// testForeignRefused: each reason fails the unit, and its status says why.
func testForeignRefused(t *testing.T, c *container) {
	c.put(t, "bad", "empty", "")
	c.put(t, "bad", "large", strings.Repeat("x", 1<<20+1))
	c.write(t, "/run/secrets/file", "x")
	c.write(t, foreignVM, foreignFile(foreignUnit, "  host-api-key: {var: gen/api-key}\n  host-file: {file: /run/secrets/file}\n"))
	for id, want := range map[string]string{
		"host-none":    "refused host-none for foreign.service: the VM foreign declares no credential of this name",
		"host-api-kee": "did you mean host-api-key?",
		"host-file":    "it comes from a file, which systemd reads itself; hint: write LoadCredential=host-file:/run/secrets/file instead",
	} {
		c.writeChecker(t, foreignUnit, "1min", id)
		c.saysWhy(t, foreignUnit, want)
	}
	for source, want := range map[string]string{
		"gen/none":  "there is no gen/none in the vars in " + varsDir + "; hint: there are gen/api-key, gen/db-password",
		"none/x":    "there is no generator none in the vars in " + varsDir,
		"bad/empty": "its value, bad/empty, is empty",
		"bad/large": "1048576",
	} {
		c.write(t, foreignVM, foreignFile(foreignUnit, "  host-x: {var: "+source+"}\n"))
		c.writeChecker(t, foreignUnit, "1min", "host-x")
		c.saysWhy(t, foreignUnit, want)
	}
	c.writeChecker(t, "stranger.service", "1min", "host-x")
	c.saysWhy(t, "stranger.service", "stranger.service is no VM's unit")
	c.writeChecker(t, "evil@foreign.service", "1min", "host-x")
	c.saysWhy(t, "evil@foreign.service", "evil@foreign.service is no VM's unit")
	// systemd itself cannot ask for a name that is too long: the broker never hears of it.
	long := strings.Repeat("n", 84-len(foreignUnit))
	c.writeChecker(t, foreignUnit, "1min", long)
	if status := c.refused(t, foreignUnit); !strings.Contains(status, "status=243/CREDENTIALS") {
		t.Errorf("a name that is too long:\n%s", status)
	}
	if got, err := c.try("vmcred units foreign >/dev/null"); err != nil {
		t.Error(got)
	}
}

// saysWhy: the unit is not started, and its status has the words.
func (c *container) saysWhy(t *testing.T, unit, want string) {
	t.Helper()
	status := ""
	// The journal may give a word an earlier time than the unit's start has, on a busy
	// machine; systemctl leaves it out then.
	for range 3 {
		if status = c.refused(t, unit); strings.Contains(status, want) {
			break
		}
	}
	for _, want := range []string{want, "status=243/CREDENTIALS"} {
		if !strings.Contains(status, want) {
			t.Errorf("the status of %s does not say %q:\n%s", unit, want, status)
			t.Log(c.do(t, "journalctl --no-pager --unit "+brokerUnit+" | tail -20"))
		}
	}
}

const (
	refusedVM   = "/etc/vmcred/vms/refused-vm.yaml"
	refusedUnit = "vmcred@refused-vm.service"
)

// writeRefused writes a VM of our own. Nothing of it is ever started.
func (c *container) writeRefused(t *testing.T, credentials string) {
	t.Helper()
	c.write(t, refusedVM, "version: 1\nhypervisor: qemu\nboot: {kernel: /usr/bin/true}\ncredentials:\n"+credentials)
	c.do(t, "systemctl daemon-reload")
}

// testRunnerRefused: each reason ends our runner, once and for all, and its status says why.
func testRunnerRefused(t *testing.T, c *container) {
	for credentials, want := range map[string]string{
		"  host-x: {var: gen/none}\n":  "the broker refuses it: there is no gen/none in the vars in " + varsDir,
		"  host-x: {var: none/x}\n":    "the broker refuses it: there is no generator none",
		"  host-x: {var: bad/empty}\n": "the broker refuses it: its value, bad/empty, is empty",
		"  host-x: {var: bad/large}\n": "the broker refuses it: ",
		"  host-x: {}\n":               "declared, but not found",
	} {
		c.writeRefused(t, credentials)
		status := c.refused(t, refusedUnit)
		for _, want := range []string{want, "status=78"} {
			if !strings.Contains(status, want) {
				t.Errorf("%s: its status does not say %q:\n%s", credentials, want, status)
			}
		}
	}
	// Another unit that says it is the VM's.
	c.writeRefused(t, "  host-x: {var: gen/api-key}\n")
	c.write(t, "/etc/systemd/system/evil@.service", "[Service]\nType=oneshot\nEnvironment=XDG_CONFIG_HOME=/etc\nUser=vmcred-%i\nRuntimeDirectory=vmcred/%i\nExecStart=/usr/local/bin/vmcred run %i\n")
	c.do(t, "systemctl daemon-reload; systemctl start evil@refused-vm.service || :")
	if got := c.do(t, "journalctl --sync; journalctl --no-pager --output=cat --unit evil@refused-vm.service"); !strings.Contains(got, "evil@refused-vm.service may not have the secrets of the VM refused-vm: they are for "+refusedUnit) {
		t.Error(got)
	}
	if got := c.do(t, "vmcred audit show --vm refused-vm; vmcred audit show | tail -40"); strings.Contains(got, "refused-vm    release") || !strings.Contains(got, "refuse") {
		t.Error(got)
	}
}
