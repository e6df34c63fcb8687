// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/api"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/process"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/hypervisor/vsock"
	"github.com/vmcred/vmcred/internal/launch"
)

// grace is how long what the VMM left behind may take to be read and written
// once its process is gone.
const grace = time.Second

// machine is one running cloud-hypervisor.
type machine struct {
	*process.Process
	ends
	heard chan struct{} // closed when the event monitor has ended

	mu   sync.Mutex // guards what follows
	life life
}

// ends are ours of all that is connected to the VMM.
type ends struct {
	client  *api.Client
	console *console.Console
	words   *console.Words
	host    *vsock.Host
	shares  *virtiofs.Servers
}

// finish reads what the VMM left behind and closes them: it is gone.
func (e *ends) finish() {
	_ = e.client.Close()
	e.console.Finish(grace)
	e.words.Finish(grace)
	e.shares.Finish(grace)
	_ = e.host.Close()
}

// life is what the VMM and we said about the VM's end.
type life struct {
	booted bool // the guest ran
	ending bool // the VMM says that the VM is over
	reboot bool // the guest asked for a reboot, and the VMM was killed for it
	asked  bool // we asked the VMM to end
	// A thread of the VMM crashed, and it was killed for it.
	crashed bool
}

// newMachine takes over the process and all that is connected to it.
func newMachine(proc *launch.Process, e ends, events *os.File, crashed <-chan struct{}) *machine {
	m := &machine{
		Process: process.New(proc), ends: e,
		heard: make(chan struct{}),
	}
	m.console.Started()
	m.shares.Watch(proc.Done(), m.lostShare)
	go func() {
		defer close(m.heard)
		api.Events(events, m.hear)
	}()
	go func() {
		select {
		case <-crashed:
			m.mark(func(l *life) { l.crashed = true })
			_ = m.Process.Process.Kill()
		case <-proc.Done():
		}
	}()
	go m.settle(events)
	return m
}

// lostShare ends a start, which would wait for the daemon for a minute. Once the
// guest runs, it is for whoever follows its life to end it.
func (m *machine) lostShare(why error) {
	runs := false
	m.mark(func(l *life) { runs = l.booted })
	if !runs {
		_ = m.Process.Process.Kill()
	}
	m.Emit(hypervisor.EventShareLost, why.Error())
}

// hear is called for each event, in order.
func (m *machine) hear(e api.Event) {
	switch e.String() {
	case "vm:rebooting":
		// It would boot with the same strings, again and again: a reboot is a new
		// start with the values of then.
		m.mark(func(l *life) { l.reboot = true })
		m.Emit(hypervisor.EventReboot, "")
		_ = m.Process.Process.Kill()
	case "vm:booted":
		m.mark(func(l *life) { l.booted = true })
	case "vm:shutdown":
		m.mark(func(l *life) { l.ending = true })
	}
}

func (m *machine) mark(f func(*life)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.life)
}

// Shutdown presses the power button. It does nothing once the VM has ended.
func (m *machine) Shutdown(ctx context.Context) error {
	err := m.client.Do(ctx, "vm.power-button")
	if err == nil || m.ending() {
		return nil
	}
	return fmt.Errorf("pressing the power button: %w", err)
}

// Quit asks the VMM to end, by a signal if its connection is gone.
func (m *machine) Quit(ctx context.Context) error {
	m.mark(func(l *life) { l.asked = true })
	err := m.client.Do(ctx, "vmm.shutdown")
	if err == nil || m.ending() {
		return nil
	}
	if errors.Is(err, api.ErrClosed) {
		err = m.Terminate()
	}
	if err != nil {
		return fmt.Errorf("asking cloud-hypervisor to end: %w", err)
	}
	return nil
}

// ranOut says whether a VMM that is gone had booted its guest: one that powers off
// at once can be faster than the answer to vm.boot.
func (m *machine) ranOut(err error) bool {
	if !errors.Is(err, api.ErrClosed) {
		return false
	}
	console.WaitFor(m.heard, grace)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life.booted
}

// ending says whether the VMM is gone or has announced that it goes.
func (m *machine) ending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life.ending || m.life.reboot || m.State() != nil
}

// settle waits for the process, reads what it left and says how it ended.
func (m *machine) settle(events *os.File) {
	<-m.Done()
	console.WaitFor(m.heard, grace)
	_ = events.Close()
	<-m.heard
	m.finish()
	m.mu.Lock()
	e := m.life.exit(m.State(), m.Killed(), m.words)
	asked := m.life.asked
	m.mu.Unlock()
	if e.Clean && !asked {
		m.Emit(hypervisor.EventPowerOff, "")
	}
	m.Settle(e)
}

// gaveUp is what the VMM says when a virtual CPU could not go on. It ends as if the
// guest had powered off then.
const gaveUp = "VCPU generated error"

// exit judges the end by the process's: the last events can be lost. Clean is a
// guest that powered off, and a VMM that was asked to end, by us or by a SIGTERM as
// systemd sends it, and did.
func (l life) exit(state *os.ProcessState, killed bool, words *console.Words) hypervisor.Exit {
	e := process.Exit(state)
	e.Detail = words.Last()
	switch {
	case l.crashed:
		e.Detail = "cloud-hypervisor crashed: " + e.Detail
	case l.reboot && !killed:
		return hypervisor.Exit{Reboot: true}
	case killed:
	case strings.Contains(words.All(), gaveUp):
		e.Detail = "cloud-hypervisor gave up the guest: " + e.Detail
	default:
		e.Clean = e.Code == 0 || l.asked && e.Signal == "SIGTERM"
	}
	return e
}
