// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
)

// forever is what only a signal ends.
const forever = "exec sleep 1000"

// running is a shell that does this, and is settled as a driver would.
func running(t *testing.T, script string) *Process {
	t.Helper()
	c := &launch.Command{Path: "/bin/sh", Args: []string{"-c", script}}
	proc, err := c.Start()
	if err != nil {
		t.Fatal(err)
	}
	p := New(proc)
	go func() {
		<-p.Done()
		p.Emit(hypervisor.EventPowerOff, "")
		p.Settle(Exit(p.State()))
	}()
	t.Cleanup(func() { _ = p.Kill() })
	return p
}

func TestEachEventOnceAndNoneAfterTheEnd(t *testing.T) {
	p := running(t, forever)
	for range 3 {
		p.Emit(hypervisor.EventRunning, "")
	}
	p.Emit(hypervisor.EventReboot, "")
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	p.Emit(hypervisor.EventPanic, "")
	var got []hypervisor.EventKind
	for e := range p.Events() {
		got = append(got, e.Kind)
	}
	if want := []hypervisor.EventKind{hypervisor.EventRunning, hypervisor.EventReboot, hypervisor.EventPowerOff}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestEnds(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		script, how string
		end         func(*Process) error
		killed      bool
	}{
		"by itself": {"exit 3", "exit status 3", func(*Process) error { return nil }, false},
		"asked":     {forever, "signal SIGTERM", (*Process).Terminate, false},
		"killed":    {forever, "signal SIGKILL", (*Process).Kill, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := running(t, c.script)
			if name != "by itself" {
				if _, err := p.Wait(over); !errors.Is(err, context.Canceled) {
					t.Errorf("it runs, and Wait says %v", err)
				}
			}
			if err := c.end(p); err != nil {
				t.Fatal(err)
			}
			<-p.Over()
			// How it ended is told also where nobody waits any more.
			if e, err := p.Wait(over); err != nil || e.How() != c.how || p.Killed() != c.killed {
				t.Errorf("%q, killed %v, %v", e.How(), p.Killed(), err)
			}
			if err := p.Terminate(); err != nil {
				t.Errorf("asking one that is gone: %v", err)
			}
		})
	}
}
