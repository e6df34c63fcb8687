// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/vm"
)

const template = "../systemd/vmcred@.service"

// settings reads a unit of ours: key → its values in order.
func settings(t *testing.T, path string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	as, problems := Parse(path, text)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	out := map[string][]string{}
	for _, a := range as {
		out[a.Key] = append(out[a.Key], a.Value)
	}
	return out
}

// TestTemplate holds what the runner and the facts about systemd depend on.
func TestTemplate(t *testing.T) {
	have := settings(t, template)
	for key, want := range map[string]string{
		"Type": "notify", "NotifyAccess": "main", "User": "vmcred-%i", "ExecStart": "@BINDIR@/vmcred run %i",
		"RuntimeDirectory": "vmcred/%i", "RuntimeDirectoryMode": "0700", "RuntimeDirectoryPreserve": "yes", "Restart": "on-failure",
		"RestartForceExitStatus": "133", "RestartPreventExitStatus": "78 243", "KillMode": "mixed",
		"Wants": "vmcred-user@%i.service vmcred-broker.socket vmcred-runner.socket", "PartOf": "vmcred.target",
		"MemorySwapMax": "0", "LimitCORE": "1", "CapabilityBoundingSet": "", "Environment": "XDG_CONFIG_HOME=/etc",
		"ReadWritePaths": "-" + strings.TrimSuffix(templateWrites, "/"),
	} {
		if got := have[key]; len(got) != 1 || got[0] != want {
			t.Errorf("%s=%q, want %q", key, got, want)
		}
	}
	stop, err := time.ParseDuration(strings.Join(have["TimeoutStopSec"], "") + "s")
	if err != nil || stop != templateStop+stopGrace || templateStop != config.DefaultStopTimeout {
		t.Errorf("TimeoutStopSec=%v does not fit stop-timeout's default, %v", have["TimeoutStopSec"], config.DefaultStopTimeout)
	}
	for _, never := range []string{"MemoryDenyWriteExecute", "DynamicUser", "PrivateDevices", "PrivateNetwork", "SupplementaryGroups", "LoadCredential"} {
		if _, is := have[never]; is {
			t.Errorf("%s= is set: emulation, taps, /dev/kvm or a host without the group would fail", never)
		}
	}
	filter := strings.Fields(strings.Join(have["SystemCallFilter"], " "))
	for _, call := range []string{"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "memfd_secret", "seccomp"} {
		if !slices.Contains(filter, call) {
			t.Errorf("SystemCallFilter= lacks %s", call)
		}
	}
	if p := "/etc/" + "vmcred/vms"; p != config.SystemDir {
		t.Errorf("XDG_CONFIG_HOME=/etc leads to %s, and VMs are in %s", p, config.SystemDir)
	}
}

// awkward is a VM whose names and paths need every kind of escape.
func awkward() *vm.Spec {
	s := &vm.Spec{Name: "x", Unit: "vmcred@x.service", StopTimeout: time.Minute}
	for _, host := range []string{"a", ` b'c"d `, `e\f%g`, "%i"} {
		for _, kind := range []vm.SourceKind{vm.SourceFile, vm.SourceEncrypted, vm.SourceUnit} {
			s.Credentials = append(s.Credentials, vm.Credential{
				Host: host + string(kind[:1]), Source: vm.Source{Kind: kind, Path: `/run/my "secrets"/a:b 100%\x`},
			})
		}
	}
	s.Disks = []vm.Disk{{Path: `/srv/my "disk" 50%\n.img`}, {Path: "/dev/vg/l v"}}
	return s
}

// instance installs the template and a VM's drop-in below a directory.
func instance(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED, the unit was not verified: needs systemd-analyze (package systemd)")
	}
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	put("vmcred", "#!/bin/sh\n", 0o755)
	drop, err := DropIn(awkward())
	if err != nil {
		t.Fatal(err)
	}
	put("vmcred@x.service.d/vmcred.conf", string(drop), 0o644)
	all, err := filepath.Glob("../systemd/vmcred*")
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		put(filepath.Base(path), strings.ReplaceAll(string(text), "@BINDIR@", dir), 0o644)
	}
	return filepath.Join(dir, "vmcred@x.service")
}

func TestTemplateVerifies(t *testing.T) {
	path := instance(t)
	for _, name := range []string{filepath.Base(path), "vmcred-user@x.service", "vmcred-share-user@x.service", "vmcred-share-lost@x.service", Broker, BrokerSocket, "vmcred-runner.socket", Target} {
		verify(t, filepath.Join(filepath.Dir(path), name))
	}
}

func verify(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	// What systemd cannot read it names and ignores, with status 0.
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify %s: %v\n%s", path, err, out)
	}
}

// TestBroker holds what the broker, runners and systemd have to agree on.
func TestBroker(t *testing.T) {
	for path, want := range map[string]map[string]string{
		"../systemd/" + BrokerSocket:      {"ListenStream": wire.LoadSocket, "SocketMode": "0600", "FileDescriptorName": "load", "Service": Broker, "WantedBy": "sockets.target"},
		"../systemd/vmcred-runner.socket": {"ListenStream": wire.Socket, "SocketMode": "0666", "FileDescriptorName": "runner", "Service": Broker, "WantedBy": "sockets.target"},
		"../systemd/" + Broker: {
			"Type": "notify", "ExecStart": "@BINDIR@/vmcred broker", "Sockets": "vmcred-broker.socket vmcred-runner.socket", "StartLimitIntervalSec": "0", "Restart": "on-failure",
			"MemorySwapMax": "0", "LimitMEMLOCK": "infinity", "LimitCORE": "1", "CapabilityBoundingSet": "", "LogsDirectory": "vmcred", "RuntimeDirectory": "vmcred/.broker", "RuntimeDirectoryPreserve": "yes",
		},
	} {
		have := settings(t, path)
		for key, value := range want {
			if got := have[key]; len(got) != 1 || got[0] != value {
				t.Errorf("%s: %s=%q, want %q", path, key, got, value)
			}
		}
		for _, never := range []string{"User", "PrivateUsers", "ProtectProc", "ProcSubset", "DynamicUser"} {
			if _, is := have[never]; is {
				t.Errorf("%s: %s= is set, and who asks could not be seen", path, never)
			}
		}
	}
}

// TestTemplateExposure keeps the units shut: at most 2.0 of 10, and those of root's that
// make users at most 1.4, the broker at most 1.5.
func TestTemplateExposure(t *testing.T) {
	dir := filepath.Dir(instance(t))
	for template, threshold := range map[string]string{"vmcred@.service": "20", "vmcred-user@.service": "14", "vmcred-share-user@.service": "14", Broker: "15"} {
		text, err := os.ReadFile(filepath.Join(dir, template))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, strings.Replace(template, "@", "@x", 1))
		if err := os.WriteFile(path, text, 0o644); err != nil { // --offline takes no instance of a template on systemd 252
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold="+threshold, "--no-pager", path).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", template, err, out)
		}
	}
}

// TestWithoutEmulation: a VMM that needs KVM gets no memory that is writable and executable,
// in a unit that systemd takes and that is shut tighter than the template by that.
func TestWithoutEmulation(t *testing.T) {
	const setting = "MemoryDenyWriteExecute"
	dir := filepath.Dir(instance(t))
	for name, c := range map[string]struct {
		hypervisor, accel string
		want              bool
	}{"ch": {"cloud-hypervisor", "", true}, "kvm": {"qemu", "kvm", true}, "auto": {"qemu", "auto", false}, "tcg": {"qemu", "tcg", false}} {
		s := &vm.Spec{Name: name, Unit: OwnUnit(name), Hypervisor: c.hypervisor, QEMU: vm.QEMU{Accel: c.accel}}
		text, err := DropIn(s)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, place(t, dir, File{s.Unit + ".d/vmcred.conf", text}))
		if got := secured(t, dir, string(text), setting); got != c.want {
			t.Errorf("%s: %s is %v, want %v", name, setting, got, c.want)
		}
		if s.Unit = "x.service"; c.want {
			if text, err := DropIn(s); err != nil || strings.Contains(string(text), setting) {
				t.Errorf("%s, in a foreign unit: %v\n%s", name, err, text)
			}
		}
	}
}

// secured asks systemd whether a setting of the template with this drop-in is as tight as
// can be, and holds the whole to the template's measure.
func secured(t *testing.T, dir, dropIn, setting string) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "vmcred@.service"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "whole.service")
	if err := os.WriteFile(path, append(text, dropIn...), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--json=short", path).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var rows []struct {
		Name string `json:"json_field"`
		Set  *bool  `json:"set"`
	}
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, r := range rows {
		if r.Name == setting && r.Set != nil {
			return *r.Set
		}
	}
	t.Fatalf("systemd does not judge %s: %s", setting, out)
	return false
}
