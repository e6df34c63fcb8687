// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/internal/systemctl"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// judged is what a VM called a is found to be, with a unit and what is below root.
func judged(t *testing.T, root string, u *systemctl.Unit) *inspected {
	t.Helper()
	i := &inspected{VM: "a", Unit: "vmcred@a.service", Systemd: u, spec: &vm.Spec{Name: "a", Notify: vm.NotifyGuest}}
	if err := (&inspector{root: root}).judge(i); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

// A unit's state is what systemd says, with the reason where it failed.
func TestUnitsState(t *testing.T) {
	since := time.Unix(1e9, 0)
	for _, c := range []struct {
		unit   systemctl.Unit
		want   vmState
		detail string
	}{
		{systemctl.Unit{Active: "active", Sub: "running", Since: since}, running, ""},
		{systemctl.Unit{Active: "activating", Sub: "start"}, starting, "systemd: start"},
		{systemctl.Unit{Active: "activating", Sub: "auto-restart", Result: "exit-code", ExitStatus: 1}, starting, "it ended with status 1"},
		{systemctl.Unit{Active: "deactivating"}, stopping, ""},
		{systemctl.Unit{Active: "failed", Result: "exit-code", ExitStatus: 78}, failed, "refused (status 78)"},
		{systemctl.Unit{Active: "failed", Result: "exit-code", ExitStatus: 243}, failed, "LoadCredential= is missing"},
		{systemctl.Unit{Active: "failed", Result: "start-limit-hit", ExitStatus: 1}, failed, "too often"},
		{systemctl.Unit{Active: "failed", Result: "signal"}, failed, "systemd: signal"},
		{systemctl.Unit{Active: "maintenance"}, stopped, "systemd: maintenance"},
		{systemctl.Unit{Active: "inactive"}, stopped, ""},
	} {
		i := judged(t, t.TempDir(), &c.unit)
		if i.State != c.want || !strings.Contains(i.Detail, c.detail) || c.detail == "" && i.Detail != "" {
			t.Errorf("%+v is %s, %q", c.unit, i.State, i.Detail)
		}
		if (i.State == failed) != (i.Hint == "journalctl -u vmcred@a.service") && c.unit.Sub != "auto-restart" {
			t.Errorf("%+v: hint %q", c.unit, i.Hint)
		}
		if i.State == running && (i.Ready == nil || i.Ready.By != "guest" || !i.Ready.At.Equal(since)) {
			t.Errorf("ready: %+v", i.Ready)
		}
	}
}

// claimed is a VM called a that this process runs.
func claimed(t *testing.T) (root string, c *state.Claim) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "vmcred")
	c, err := state.Acquire(root, "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return root, c
}

// If a unit is up and a record is alive, the one that holds the lock runs the VM.
func TestTheLockDecides(t *testing.T) {
	root, c := claimed(t)
	up := &systemctl.Unit{Active: "activating", MainPID: 1}
	if i := judged(t, root, nil); i.State != starting || !strings.Contains(i.Detail, "no record yet") || i.RunnerPID != os.Getpid() {
		t.Errorf("a lock without a record: %+v", i)
	}
	if err := c.Write(state.Record{VM: "a", VMM: state.Self(), Ready: &state.Ready{By: "boot"}}); err != nil {
		t.Fatal(err)
	}
	if i := judged(t, root, up); i.State != running || i.RunnerPID != os.Getpid() || !strings.Contains(i.Detail, "activating too, but this run holds") {
		t.Errorf("both: %+v", i)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if i := judged(t, root, up); i.State != starting || i.RunnerPID != 1 {
		t.Errorf("the unit alone: %+v", i)
	}
}

// The VM's user owns its unit's directory: what it writes there is nobody's word.
func TestForgedRecordIsNotShown(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to give a directory to another user")
	}
	root, c := claimed(t)
	if err := c.Write(state.Record{VM: "a", VMM: state.Self(), Delivered: []state.Delivered{{Guest: "FORGED"}}}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(c.Dir(), 65527, -1); err != nil {
		t.Fatal(err)
	}
	i := judged(t, root, &systemctl.Unit{Active: "active", Sub: "running", MainPID: 4711})
	if i.State != running || i.RunnerPID != 4711 || len(i.Delivered) > 0 || i.found != nil {
		t.Errorf("with its unit up: %+v", i)
	}
	i = judged(t, root, &systemctl.Unit{Active: "inactive"})
	if i.RunnerPID != 0 || len(i.Delivered) > 0 || !strings.Contains(i.Detail, "belongs to uid 65527") {
		t.Errorf("with its unit down: %+v", i)
	}
	if i.found.Handle() != nil {
		t.Error("it could be signalled")
	}
}

// A hypervisor that outlived its runner is told of, with its number.
func TestOrphanIsNamed(t *testing.T) {
	root, c := claimed(t)
	if err := c.Write(state.Record{VM: "a", VMM: state.Describe(os.Getpid())}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Dir(), "record.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The runner's number is another process's now.
	was := `"runner": {
    "pid": `
	if !strings.Contains(string(b), was) {
		t.Fatalf("the record has another form: %s", b)
	}
	forged := strings.Replace(string(b), was, was+"1,\n    \"was\": ", 1)
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(forged), 0o600)); err != nil {
		t.Fatal(err)
	}
	if i := judged(t, root, nil); i.State != dead || i.VMMPID != os.Getpid() || !strings.Contains(i.Hint, "kill ") {
		t.Errorf("%+v", i)
	}
}
