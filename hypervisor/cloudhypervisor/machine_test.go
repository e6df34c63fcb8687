// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/console"
)

// ended is a process that ended with this status, and what it said before.
func ended(t *testing.T, script, said string) (*os.ProcessState, *console.Words) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	_ = cmd.Run()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(said); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	words := console.Listen(r, nil, "messages")
	words.Finish(grace)
	return cmd.ProcessState, words
}

func TestExit(t *testing.T) {
	const error460 = "cloud-hypervisor: ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: x\n"
	for name, c := range map[string]struct {
		life          life
		script, said  string
		clean, reboot bool
		code          int
		detail        string
	}{
		"power off":               {script: "exit 0", clean: true},
		"asked":                   {life: life{asked: true}, script: "exit 0", clean: true},
		"SIGTERM before it hears": {life: life{asked: true}, script: "kill -TERM $$", clean: true, code: -1},
		"SIGTERM of someone else": {script: "kill -TERM $$", code: -1},
		"killed by us":            {life: life{killed: true}, script: "kill -KILL $$", code: -1},
		"killed for a reboot":     {life: life{reboot: true}, script: "kill -KILL $$", reboot: true},
		"a reboot, then killed":   {life: life{reboot: true, killed: true}, script: "kill -KILL $$", code: -1},
		"gave the guest up":       {script: "exit 0", said: error460, detail: "gave up the guest"},
		"crashed":                 {life: life{crashed: true}, script: "kill -KILL $$", said: "thread 'vmm' panicked at x.rs:1\n", code: -1, detail: "crashed"},
		"failed":                  {script: "exit 3", said: "no such thing\n", code: 3, detail: "no such thing"},
	} {
		t.Run(name, func(t *testing.T) {
			state, words := ended(t, c.script, c.said)
			e := c.life.exit(state, words)
			if e.Clean != c.clean || e.Reboot != c.reboot || e.Code != c.code || !strings.Contains(e.Detail, c.detail) {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestCrashWatch(t *testing.T) {
	var got bytes.Buffer
	w := newCrashWatch(&got)
	for _, line := range []string{"all is well\n", "thread 'vmm' panicked at src/x.rs:1:2\n", "note: panicked at again\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-w.crashed:
	default:
		t.Error("a crash was not noticed")
	}
	if !strings.HasPrefix(got.String(), "all is well\n") || strings.Count(got.String(), "\n") != 3 {
		t.Errorf("passed on %q", got.String())
	}
}
