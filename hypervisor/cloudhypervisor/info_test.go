// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// until closes seen once the text was written.
type until struct {
	mu   sync.Mutex
	text string
	all  bytes.Buffer
	seen chan struct{}
}

func (u *until) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	before := strings.Contains(u.all.String(), u.text)
	n, err := u.all.Write(p)
	if !before && strings.Contains(u.all.String(), u.text) {
		close(u.seen)
	}
	return n, err
}

// place is a directory for a VM's files that the VMM's user can enter.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-ch-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// withDevices is a VM with two disks and, for root, a real tap.
func withDevices(t *testing.T) *vm.Spec {
	t.Helper()
	dir := place(t)
	kernel, err := os.ReadFile(probe.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	put(t, at("kernel"), kernel, 0o644)
	put(t, at("data.img"), make([]byte, 1<<20), 0o666)
	put(t, at("seed.img"), make([]byte, 1<<20), 0o644)
	s := &vm.Spec{
		Name: "test-vm", CPUs: 2, Memory: 128 << 20, Guest: vm.Guest{Systemd: 257}, Notify: vm.NotifyBoot,
		Boot: vm.Boot{Kernel: at("kernel"), Cmdline: probe.WordWait}, Console: vm.Console{Mode: vm.ConsoleStdout},
		Disks: []vm.Disk{{Path: at("data.img"), Format: "raw", Serial: "data"}, {Path: at("seed.img"), Format: "raw", ReadOnly: true}},
	}
	const tap = "vmcred-ch0"
	if os.Geteuid() != 0 || !hostcheck.Exists(hostcheck.Tun) {
		t.Log("SKIPPED: a tap, which takes root and " + hostcheck.Tun)
		return s
	}
	if out, err := exec.Command("ip", "tuntap", "add", "dev", tap, "mode", "tap", "user", "65531").CombinedOutput(); err != nil {
		t.Logf("SKIPPED: a tap: %v %s", err, out)
		return s
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", tap).Run() })
	s.Interfaces = []vm.Interface{{Type: "tap", ID: tap, MAC: "02:00:00:01:01:01"}}
	return s
}

// TestInfoOnStandIn and TestInfo: what vm.info gives back is what the file said.
// cloud-hypervisor ignores a key that it does not know, so this is how a name that
// is wrong is found.
func TestInfoOnStandIn(t *testing.T) {
	kvmAsUdevHasIt(t)
	testInfo(t, New(Options{Path: vmm(t)}))
}

func TestInfo(t *testing.T) {
	needReal(t)
	testInfo(t, New(Options{}))
}

func testInfo(t *testing.T, d *Driver) {
	t.Helper()
	spec := withDevices(t)
	m, console := run(t, d, spec)
	b, err := m.client.Get(t.Context(), "vm.info")
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Config map[string]any }
	if err := json.Unmarshal(b, &info); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cpus.boot_vcpus": 2.0, "cpus.max_vcpus": 2.0, "memory.size": float64(128 << 20),
		"payload.kernel": spec.Boot.Kernel, "payload.cmdline": probe.WordWait,
		"disks.0.path": spec.Disks[0].Path, "disks.0.readonly": false, "disks.0.serial": "data", "disks.0.image_type": "Raw",
		"disks.1.path": spec.Disks[1].Path, "disks.1.readonly": true,
		"rng.src": "/dev/urandom", "serial.mode": "File", "console.mode": "Off",
		"platform.oem_strings.0": "io.systemd.credential.binary:A=YWxwaGE=",
	}
	if len(spec.Interfaces) > 0 {
		want["net.0.mac"] = "02:00:00:01:01:01"
	}
	for path, value := range want {
		if got := dig(info.Config, path); got != value {
			t.Errorf("%s is %v, want %v", path, got, value)
		}
	}
	if len(spec.Interfaces) > 0 {
		hasCarrier(t, spec.Interfaces[0].ID)
	}
	// Nobody else can ask: what the API listens at has no name.
	for _, l := range listening(t) {
		if strings.HasSuffix(l, "/"+apiSocket) {
			if _, err := net.Dial("unix", l); err == nil {
				t.Errorf("%s takes connections", l)
			}
		}
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	exit, err := m.Wait(t.Context())
	if err != nil || !exit.Clean {
		t.Errorf("exit %+v, %v, console %s", exit, err, console.all.String())
	}
}

// listening are the names of the unix sockets on this machine.
func listening(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 {
			names = append(names, f[7])
		}
	}
	return names
}

// A tap that is not there is not made, for root either.
func TestNoTapIsMade(t *testing.T) {
	if os.Geteuid() != 0 || !hostcheck.Exists(hostcheck.Tun) {
		t.Skip("SKIPPED: only root could make one, and needs " + hostcheck.Tun)
	}
	const name = "vmcred-none0"
	if f, err := openTap(name, false); err == nil {
		_ = f.Close()
		t.Error("it was made")
	}
	if hostcheck.Exists("/sys/class/net/" + name) {
		t.Error("it is left behind")
	}
}

// launchOf is a start of that VM with one secret.
func launchOf(t *testing.T, d *Driver, spec *vm.Spec) hypervisor.Launch {
	t.Helper()
	set := credential.NewSet()
	t.Cleanup(func() { _ = set.Close() })
	v, err := secret.Read(strings.NewReader("alpha"), 100)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.AddSecret("a", "A", v); err != nil {
		t.Fatal(err)
	}
	return launchWith(t, d, spec, set)
}

// launchWith gives the VM what is in the set.
func launchWith(t *testing.T, d *Driver, spec *vm.Spec, set *credential.Set) hypervisor.Launch {
	t.Helper()
	info, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ps := vm.Problems(d.Check(spec, info)).Fatal(); len(ps) > 0 {
		t.Fatal(ps)
	}
	plan, refusals := delivery.Make(d.Offers(spec, info), delivery.Guest{Systemd: 257}, set.Metas())
	if len(refusals) > 0 {
		t.Fatal(refusals)
	}
	return hypervisor.Launch{
		Spec: spec, Info: info, Plan: plan, Identity: factory().Identity, RunDir: t.TempDir(), Log: &until{text: "\x00", seen: make(chan struct{})},
		Deliver: func(context.Context) (*delivery.Payload, error) { return plan.Encode(set) },
	}
}

// run starts the VM and waits for the guest's last word.
func run(t *testing.T, d *Driver, spec *vm.Spec) (*machine, *until) {
	t.Helper()
	console := &until{text: probe.Last, seen: make(chan struct{})}
	l := launchOf(t, d, spec)
	l.Console = console
	ours := startOf(t, d, l)
	select {
	case <-console.seen:
	case <-ours.Over():
		exit, _ := ours.Wait(t.Context())
		t.Fatalf("the VM ended: %+v", exit)
	}
	return ours, console
}

func startOf(t *testing.T, d *Driver, l hypervisor.Launch) *machine {
	t.Helper()
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	return m.(*machine)
}

// dig finds "disks.0.path" in what JSON was.
func dig(v any, path string) any {
	for step := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i := int(step[0] - '0')
			if i >= len(at) {
				return nil
			}
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

// hasCarrier: a tap has one while somebody is attached to it.
func hasCarrier(t *testing.T, tap string) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", tap, "up").CombinedOutput(); err != nil {
		t.Fatalf("ip link set up: %s", out)
	}
	if b, err := os.ReadFile("/sys/class/net/" + tap + "/carrier"); err != nil || strings.TrimSpace(string(b)) != "1" {
		t.Errorf("carrier of %s: %q, %v", tap, b, err)
	}
}
