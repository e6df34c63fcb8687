// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestUnit starts the VM of docs/systemd.md as a unit and does all that the page
// says. One container and its VM serve every step, so a step needs those before
// it.
func TestUnit(t *testing.T) {
	h := setUp(t)
	for _, step := range []struct {
		name string
		do   func(*testing.T, *host)
	}{
		{"start returns when ready", testStart},
		{"the guest has every value", testArrived},
		{"one record for each credential", testJournal},
		{"the audit log", testAudit},
		{"status", testStatus},
		{"vmcred's own commands", testCommands},
		{"exposure", testExposure},
		{"restart brings new values", testRestart},
		{"a guest's reboot is a new start", testReboot},
		{"who the processes are", testIdentity},
		{"the runner is closed to its own user", testUndumpable},
		{"the hypervisor is in its domain", testDomain},
		{"another VM's user gets nothing", testOther},
		{"no value where none belongs", testSearch},
		{"stop is the power button", testStop},
		{"vmcred stop", testStopCommand},
		{"a second start", testTwice},
		{"no room for a record", testAuditFull},
		{"a missing file", testMissing},
		{"a refused VM", testRefused},
		{"a VM with disks", testDisks},
		{"a guest that says when it is up", testReady},
		{"a guest that never says so", testSilent},
		{"a guest's own systemd says when it is up", testNewer},
		{"all VMs", testTarget},
		{"without the generator", testNoGenerator},
		{"values from the store", testVars},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			t.FailNow() // the next ones would only say that this one failed
		}
	}
	h.page.wantAllDone(t)
}

func testStart(t *testing.T, h *host) {
	h.page.follow(t, h.container, "Start")
	id := h.started(t)
	h.want(t, map[string]string{
		"ActiveState": "active", "SubState": "running", "StatusText": "running", "NRestarts": "0",
	})
	// Every value is in the hypervisor by then, and the guest has said nothing yet.
	records := h.records(t, id)
	end := slices.IndexFunc(records, func(r record) bool { return r["JOB_TYPE"] == "start" && r["JOB_RESULT"] == "done" })
	if end < 0 {
		t.Fatalf("systemd has no word of the start:\n%s", tail(records))
	}
	delivered := with(slices.Clone(records[:end]), func(r record) bool { return r["VMCRED_GUEST"] != "" })
	said := with(slices.Clone(records[:end]), func(r record) bool { return r.message() == "demo: done" })
	t.Logf("from systemctl start to the hypervisor's process: %v", between(t, records, func(r record) bool { return r["JOB_TYPE"] == "start" }, func(r record) bool { return r["VMCRED_PID"] != "" }))
	if len(delivered) != 6 || len(said) > 0 {
		t.Errorf("start returned with %d credentials delivered, want 6, and %d guests booted, want 0", len(delivered), len(said))
	}
}

func testArrived(t *testing.T, h *host) {
	h.wantArrived(t, h.heard(t, h.starts[0]), h.remember(t))
}

func testJournal(t *testing.T, h *host) {
	all := h.records(t, h.starts[0])
	for name, guest := range credentials() {
		records := with(slices.Clone(all), func(r record) bool { return r["VMCRED_GUEST"] == guest })
		if len(records) != 1 {
			t.Errorf("%d records for %s, want one", len(records), guest)
			continue
		}
		size := map[string]string{"jwt-secret": "88"}[name]
		if size == "" {
			size = "44"
		}
		for field, want := range map[string]string{
			"VMCRED_VM": "test-vm", "VMCRED_CREDENTIAL": "host-" + name, "VMCRED_BYTES": size, "VMCRED_CHANNEL": "smbios", "PRIORITY": "6",
		} {
			if got := records[0][field]; got != want {
				t.Errorf("%s: %s=%q, want %q", guest, field, got, want)
			}
		}
	}
	started := with(all, func(r record) bool { return r["VMCRED_CONFINEMENT"] != "" })
	if len(started) != 1 || started[0]["VMCRED_VERSION"] == "" || started[0]["VMCRED_ACCEL"] == "" || started[0]["VMCRED_PID"] == "" {
		t.Errorf("records of the hypervisor: %v", started)
	}
}

func testStatus(t *testing.T, h *host) {
	said := strings.Join(h.page.follow(t, h.container, "Status and logs"), "")
	runner := h.processes(t)["runner"]
	for _, want := range []string{
		`Status: "running"`, "Active: active (running)", "vmcred run test-vm", "qemu-system-x86_64",
		"StatusText=running\n", fmt.Sprintf("MainPID=%d\n", runner), "InvocationID=" + h.starts[0] + "\n",
		"delivered host-api-key → HOST_API_KEY, 44 bytes by smbios\n", "demo: done",
		`"VMCRED_CREDENTIAL":"host-api-key"`, `"VMCRED_BYTES":"44"`,
	} {
		if !strings.Contains(said, want) {
			t.Errorf("the commands do not say %q:\n%s", want, said)
		}
	}
	for name, value := range h.every {
		if strings.Contains(said, value) {
			t.Errorf("the value of %s is shown", name)
		}
	}
}

func testExposure(t *testing.T, h *host) {
	h.page.follow(t, h.container, "What the unit may do") // fails above its threshold
}

func testRestart(t *testing.T, h *host) {
	before := h.remember(t)
	// The guest will reboot; the next step is about that.
	h.writeVM(t, "  DEMO_ACTION: reboot")
	h.page.follow(t, h.container, "New values")
	id := h.started(t)
	after := h.remember(t)
	if after["api-key"] == before["api-key"] {
		t.Fatal("the page makes no new value")
	}
	// For the start after this one: this one has read its values.
	h.writeVM(t, "console: socket")
	h.do(t, h.block(t, "The secrets"))
	h.wantArrived(t, h.heard(t, id), after)
	h.wantPowerOff(t, h.starts[0])
}

// block returns the only commands of a section.
func (h *host) block(t *testing.T, section string) string {
	t.Helper()
	i := slices.IndexFunc(h.page.blocks, func(b *block) bool { return b.section == section && b.kind == "sh" })
	if i < 0 {
		t.Fatalf("the page has no commands in %q", section)
	}
	return h.page.blocks[i].text
}

func (h *host) wantPowerOff(t *testing.T, invocation string) {
	t.Helper()
	records := h.records(t, invocation)
	if n := len(with(slices.Clone(records), func(r record) bool { return r.message() == "the guest powers off" })); n != 1 {
		t.Errorf("the guest powered off %d times, want once; the journal ends with\n%s", n, tail(records))
	}
}

func testReboot(t *testing.T, h *host) {
	values := h.remember(t)
	h.journal.wait(t, "a third start", func(r record) bool {
		return r["VMCRED_CONFINEMENT"] != "" && !slices.Contains(h.starts, r.invocation())
	})
	said := h.listen(t)
	h.started(t)
	h.wantArrived(t, said, values)
	h.want(t, map[string]string{"NRestarts": "1", "ActiveState": "active", "StatusText": "running"})
	// Only status 133 is both a success and a reason to start again.
	for _, r := range h.records(t, h.starts[1]) {
		if r["UNIT"] == unitName && strings.Contains(r.message(), "Failed") {
			t.Errorf("the reboot counts as a failure: %s", r.message())
		}
	}
}

func testStop(t *testing.T, h *host) {
	pids := h.processes(t)
	cgroup := h.cgroup(t)
	h.page.follow(t, h.container, "Stop")
	h.want(t, map[string]string{"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "ExecMainCode": "1", "NRestarts": "1"})
	h.wantPowerOff(t, h.starts[2])
	for who, pid := range pids {
		if out, err := h.try(fmt.Sprintf("test ! -e /proc/%d", pid)); err != nil {
			t.Errorf("%s is left: %s", who, out)
		}
	}
	// The directory itself stays: it is the VM's lock.
	if out, err := h.try("test -z \"$(ls -A " + runDir + ")\""); err != nil {
		t.Errorf("the runtime directory is not empty: %s", out)
	}
	for _, path := range []string{"/run/credentials/" + unitName, cgroup} {
		if out, err := h.try("test ! -e " + path); err != nil {
			t.Errorf("%s is left: %s", path, out)
		}
	}
	if out, err := h.try("uid=$(id -u " + vmUser + "); ! grep -sE \"^Uid:\\s$uid\\s\" /proc/[0-9]*/status"); err != nil {
		t.Errorf("processes of the VM's user are left: %s", out)
	}
}

// wantFailed starts the unit, which must fail once and for all.
func (h *host) wantFailed(t *testing.T, status string) {
	t.Helper()
	if out, err := h.try("systemctl start " + unitName); err == nil {
		t.Fatalf("it started: %s", out)
	}
	// With a restart to come it would be "activating" and "auto-restart".
	h.want(t, map[string]string{"ActiveState": "failed", "SubState": "failed", "NRestarts": "0", "ExecMainStatus": status})
	h.started(t)
}

func testMissing(t *testing.T, h *host) {
	h.do(t, "rm "+sources+"/jwt-secret")
	h.wantFailed(t, "243")
	said := h.page.follow(t, h.container, "When it ends")
	for _, want := range []string{"ActiveState=failed", "Result=exit-code", "ExecMainStatus=243", "NRestarts=0"} {
		if !strings.Contains(said[0], want+"\n") {
			t.Errorf("no %s in %q", want, said[0])
		}
	}
}

func testRefused(t *testing.T, h *host) {
	h.do(t, "install -m 400 /dev/null "+sources+"/jwt-secret")
	h.wantFailed(t, "78")
	// By unit, as in testTwice.
	h.wantSaid(t, 0, "journalctl --sync; journalctl --no-pager --lines=8 --unit "+unitName, "host-jwt-secret: its value is empty")
}

// disksVM uses everything for which a drop-in opens something.
const disksVM = `version: 1
hypervisor: qemu
memory: 512MiB
boot: {kernel: /var/lib/vmcred/images/demo/vmlinuz, initrd: /var/lib/vmcred/images/demo/initrd}
console: /var/log/vms/disks-vm.log
stop-timeout: 2m
disks:
- {path: "/srv/a disk 50%.img"}
- {path: /dev/disk/by-id/lvm-x, readonly: true}
- {path: /dev/vg/x}
interfaces: [{type: tap, id: vm-disks}]
credentials:
  host-key: {file: /run/secrets/key}
`

func testDisks(t *testing.T, h *host) {
	h.write(t, "/etc/vmcred/vms/disks-vm.yaml", disksVM)
	const instance = "vmcred@disks-vm.service"
	said := h.do(t, `systemctl daemon-reload
		systemd-analyze verify --man=no `+instance)
	if said != "" {
		t.Errorf("verify says %s", said)
	}
	h.do(t, "systemd-analyze security --no-pager --threshold=20 "+instance)
	for property, want := range map[string][]string{
		"DeviceAllow": {"/dev/disk/by-id/lvm-x r", "/dev/vg/x rw"}, "ReadWritePaths": {"/srv/a", "/var/log/vms"}, "TimeoutStopUSec": {"2min 30s"},
	} {
		got := h.do(t, "systemctl show --value --property="+property+" "+instance)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s=%q lacks %q", property, got, w)
			}
		}
	}
}
