// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// plainDir is where a plain run of root's keeps what it has.
const plainDir = "/run/vmcred/.run/test-vm"

// plainRun is a `vmcred run` of root's.
type plainRun struct {
	cmd  *exec.Cmd
	said strings.Builder
	done chan error // its end
}

// plain starts the VM by hand and returns when its hypervisor runs.
func (h *host) plain(t *testing.T) *plainRun {
	t.Helper()
	r := &plainRun{done: make(chan error, 1)}
	r.cmd = h.command("vmcred", "run", "--load-credential", "host-jwt-secret:"+sources+"/jwt-secret", "test-vm")
	stderr, err := r.cmd.StderrPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			r.said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "delivered host-jwt-secret") {
				close(up)
				break
			}
		}
		_, _ = io.Copy(&r.said, stderr)
		r.done <- r.cmd.Wait()
	}()
	select {
	case <-up:
	case err := <-r.done:
		t.Fatalf("the plain run ended: %v\n%s", err, &r.said)
	}
	return r
}

// stop ends it by vmcred stop, and wants that nothing of it is left.
func (r *plainRun) stop(t *testing.T, h *host) {
	t.Helper()
	h.wantSaid(t, 0, "vmcred stop --force test-vm", "test-vm has stopped")
	if err := <-r.done; err != nil {
		t.Errorf("the plain run ended with %v\n%s", err, &r.said)
	}
	h.do(t, "test ! -e "+plainDir)
}

// testTwice: a VM runs once, by its unit or by hand, whoever comes second and
// however often: systemd makes the runtime directory its user's before it starts
// anything.
func testTwice(t *testing.T, h *host) {
	h.writeVM(t)
	for _, before := range []string{"nothing is there", "what systemd left is there"} {
		r := h.plain(t)
		runner := strings.TrimSpace(h.do(t, "cat "+plainDir+"/lock"))
		for range 2 { // the first must not make way for the second
			h.wantFailed(t, "78")
			// By unit: the journal may hear a process that ended soon after its invocation is forgotten.
			said := h.do(t, "journalctl --sync; journalctl --no-pager --lines=8 --unit "+unitName)
			for _, want := range []string{"VM test-vm runs already", "vmcred stop test-vm"} {
				if !strings.Contains(said, want) {
					t.Errorf("%s: the journal does not say %q:\n%s", before, want, said)
				}
			}
		}
		h.wantSaid(t, 0, "vmcred status test-vm", "test-vm: running since ", fmt.Sprintf("process %s\n", runner), "host-jwt-secret")
		h.wantSaid(t, 0, "vmcred list", "test-vm  running  qemu")
		h.wantSaid(t, 78, "vmcred run test-vm", "runs already, started by process "+runner, "vmcred stop test-vm")
		r.stop(t, h)
		h.do(t, "systemctl reset-failed "+unitName)
		h.wantSaid(t, 3, "vmcred status test-vm", "test-vm: stopped")
	}
	h.do(t, "systemctl start "+unitName)
	h.started(t)
	runner := h.processes(t)["runner"]
	inUnit := h.do(t, "stat -c '%U %a %i' "+runDir)
	h.wantSaid(t, 78, "vmcred run test-vm", "VM test-vm runs already", "systemctl stop "+unitName)
	if now := h.do(t, "stat -c '%U %a %i' "+runDir); now != inUnit || !strings.HasPrefix(now, vmUser+" 700 ") {
		t.Errorf("the unit's directory was %sand is %s", inUnit, now)
	}
	h.wantSaid(t, 0, "vmcred status test-vm", "test-vm: running since ", fmt.Sprintf("process %d\n", runner), unitName+": active (running)")
	h.wantSaid(t, 0, "vmcred stop --force test-vm", "test-vm has stopped")
	h.want(t, map[string]string{"ActiveState": "inactive", "Result": "success"})
}
