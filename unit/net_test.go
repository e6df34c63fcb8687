// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/vm"
)

const netTemplate = "../systemd/vmcred-net@.service"

// TestDropInWantsTaps: where the VM's file asks for taps, and nowhere else.
func TestDropInWantsTaps(t *testing.T) {
	const want = "\n[Unit]\nRequires=vmcred-net@test-vm.service\nAfter=vmcred-net@test-vm.service\n"
	there := vm.Interface{Type: "tap", ID: "a"}
	for _, tc := range []struct {
		nics []vm.Interface
		unit string
		want bool
	}{
		{nil, "", false},
		{[]vm.Interface{there}, "", false},
		{[]vm.Interface{there, {Type: "tap", ID: "b", Bridge: "br0"}}, "", true},
		{[]vm.Interface{{Type: "tap", ID: "b", Isolated: true}}, "", true},
		{[]vm.Interface{{Type: "tap", ID: "b", Isolated: true}}, "other.service", false},
	} {
		s := spec()
		s.Interfaces = tc.nics
		if tc.unit != "" {
			s.Unit = tc.unit
		}
		got, err := DropIn(s)
		if err != nil || strings.Contains(string(got), want) != tc.want || strings.Contains(string(got), "vmcred-net") != tc.want {
			t.Errorf("%+v: %v\n%s", tc, err, got)
		}
	}
}

// TestNetTemplate: systemd knows all that the unit says, and it is shut but for what
// it does.
func TestNetTemplate(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED, the unit was not verified: needs systemd-analyze (package systemd)")
	}
	text, err := os.ReadFile(netTemplate)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"Type=oneshot", "RemainAfterExit=yes", "StopWhenUnneeded=yes", "PartOf=vmcred@%i.service", "CapabilityBoundingSet=CAP_NET_ADMIN",
		"ExecStart=@BINDIR@/vmcred net up %i", "ExecStopPost=@BINDIR@/vmcred net down %i",
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "vmcred-net@x.service")
	unit := strings.ReplaceAll(string(text), "@BINDIR@", dir)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "vmcred"), []byte("#!/bin/sh\n"), 0o755), os.WriteFile(path, []byte(unit), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", path).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
