// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/state"
)

// says runs the program to its end.
func (h *host) says(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, log strings.Builder
	c := h.command(t, nil, args...)
	c.Stdout, c.Stderr = &out, &log
	_ = c.Run() // its status says it
	return out.String(), log.String(), c.ProcessState.ExitCode()
}

// A VM that root started is seen by root, with all that it was given and no value;
// nobody else may stop it; and root stops it.
func TestRootsRunIsSeenAndStopped(t *testing.T) {
	needRoot(t, "it starts a VM as root")
	onEach(t, rootsRunIsSeenAndStopped)
}

func rootsRunIsSeenAndStopped(t *testing.T, k kind) {
	h, pids, _ := victims(t, k)
	uid, _ := ownerOf(t, pids["hypervisor"])
	out, log, status := h.says(t, "status", h.name, "--json")
	var got struct {
		State  string
		Runner int               `json:"runner_pid"`
		VMM    int               `json:"vmm_pid"`
		UID    int               `json:"vmm_uid"`
		Given  []state.Delivered `json:"credentials"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		t.Fatalf("%v, status %d: %s%s", err, status, out, log)
	}
	if got.State != "running" || got.Runner != pids["runner"] || got.VMM != pids["hypervisor"] || got.UID != uid || len(got.Given) != len(h.all) {
		t.Errorf("%+v, want the processes %v of user %d and %d credentials", got, pids, uid, len(h.all))
	}
	record, err := os.ReadFile(filepath.Join(h.runtime(), "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range h.all {
		if strings.Contains(string(record)+out+log, string(c.value)) {
			t.Errorf("the value of %s is shown", c.name)
		}
	}

	other := *h
	other.uid, other.run = 64000+os.Getpid()%500, filepath.Join(h.dir, "run2")
	other.mkdir(t, other.run)
	for _, command := range []string{"status", "stop", "console"} {
		if _, log, status := other.says(t, command, h.name); status != 78 || !strings.Contains(log, "is not yours") {
			t.Errorf("somebody else's %s: status %d: %s", command, status, log)
		}
	}

	if _, log, status := h.says(t, "stop", h.name); status != 0 {
		t.Errorf("stop: status %d: %s", status, log)
	}
	if _, _, status := h.says(t, "status", h.file()); status != 3 {
		t.Errorf("after it: status %d", status)
	}
}
