// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

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
		killed        bool
		script, said  string
		clean, reboot bool
		code          int
		detail        string
	}{
		"power off":               {script: "exit 0", clean: true},
		"asked":                   {life: life{asked: true}, script: "exit 0", clean: true},
		"SIGTERM before it hears": {life: life{asked: true}, script: "kill -TERM $$", clean: true, code: -1},
		"SIGTERM of someone else": {script: "kill -TERM $$", code: -1},
		"killed by us":            {killed: true, script: "kill -KILL $$", code: -1},
		"killed for a reboot":     {life: life{reboot: true}, script: "kill -KILL $$", reboot: true},
		"a reboot, then killed":   {life: life{reboot: true}, killed: true, script: "kill -KILL $$", code: -1},
		"gave the guest up":       {script: "exit 0", said: error460, detail: "gave up the guest"},
		"crashed":                 {life: life{crashed: true}, script: "kill -KILL $$", said: "thread 'vmm' panicked at x.rs:1\n", code: -1, detail: "crashed"},
		"failed":                  {script: "exit 3", said: "no such thing\n", code: 3, detail: "no such thing"},
	} {
		t.Run(name, func(t *testing.T) {
			state, words := ended(t, c.script, c.said)
			e := c.life.exit(state, c.killed, words)
			if e.Clean != c.clean || e.Reboot != c.reboot || e.Code != c.code || !strings.Contains(e.Detail, c.detail) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// A guest that makes the VMM complain, or a log that stands still, hides no crash.
func TestCrashWatch(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	watch, log := newCrashWatch(), make(stuck)
	words := console.ListenFor(r, log, "messages", watch.line)
	text := strings.Repeat("a guest's doing\n", 1000) + "thread 'vmm' panicked at src/x.rs:1:2\nnote: panicked at again\n"
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	select {
	case <-watch.crashed:
	case <-time.After(time.Minute):
		t.Error("a crash was not noticed")
	}
	close(log)
	_ = w.Close()
	words.Finish(time.Minute)
}

// stuck is a log whose reader stands still until it is closed.
type stuck chan struct{}

func (s stuck) Write(b []byte) (int, error) {
	<-s
	return len(b), nil
}
