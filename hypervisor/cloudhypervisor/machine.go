// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/api"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/hypervisor/vsock"
	"github.com/vmcred/vmcred/internal/launch"
)

// grace is how long what the VMM left behind may take to be read and written
// once its process is gone.
const grace = time.Second

// machine is one running cloud-hypervisor.
type machine struct {
	proc *launch.Process
	ends
	events chan hypervisor.Event // room for each kind once, so nothing waits for a reader
	heard  chan struct{}         // closed when the event monitor has ended
	done   chan struct{}         // closed when all is over; exit is set before
	exit   exit

	mu      sync.Mutex // guards what follows
	emitted map[hypervisor.EventKind]bool
	over    bool // no more events
	life    life
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
	killed bool // we killed it
	// A thread of the VMM crashed, and it was killed for it.
	crashed bool
}

// exit is hypervisor.Exit with words.
type exit hypervisor.Exit

func (e exit) how() string {
	if e.Signal != "" {
		return e.Signal
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// newMachine takes over the process and all that is connected to it.
func newMachine(proc *launch.Process, e ends, events *os.File, crashed <-chan struct{}) *machine {
	m := &machine{
		proc: proc, ends: e,
		events:  make(chan hypervisor.Event, 8),
		emitted: make(map[hypervisor.EventKind]bool),
		heard:   make(chan struct{}), done: make(chan struct{}),
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
			_ = m.proc.Kill()
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
		_ = m.proc.Kill()
	}
	m.emit(hypervisor.EventShareLost, why.Error())
}

// emit passes each kind on once.
func (m *machine) emit(kind hypervisor.EventKind, detail string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over || m.emitted[kind] {
		return
	}
	m.emitted[kind] = true
	m.events <- hypervisor.Event{Kind: kind, Detail: detail}
}

// hear is called for each event, in order.
func (m *machine) hear(e api.Event) {
	switch e.String() {
	case "vm:rebooting":
		// It would boot with the same strings, again and again: a reboot is a new
		// start with the values of then.
		m.mark(func(l *life) { l.reboot = true })
		m.emit(hypervisor.EventReboot, "")
		_ = m.proc.Kill()
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

// Events implements [hypervisor.Machine].
func (m *machine) Events() <-chan hypervisor.Event { return m.events }

// PID implements [hypervisor.Machine].
func (m *machine) PID() int { return m.proc.PID() }

// Confinement implements [hypervisor.Machine]. The VMM adds a seccomp filter a thread.
func (m *machine) Confinement() string { return m.proc.Confinement() + ", seccomp" }

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
		if err = m.proc.Signal(unix.SIGTERM); errors.Is(err, os.ErrProcessDone) {
			return nil
		}
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
	return m.life.ending || m.life.reboot || m.proc.State() != nil
}

// Kill ends the VMM at once, also a stopped one.
func (m *machine) Kill() error {
	m.mark(func(l *life) { l.killed = true })
	if err := m.proc.Kill(); err != nil {
		return err
	}
	<-m.done
	return nil
}

// Wait implements [hypervisor.Machine]. All output has been passed on then, as
// far as its reader took it.
func (m *machine) Wait(ctx context.Context) (hypervisor.Exit, error) {
	select {
	case <-m.done:
		return hypervisor.Exit(m.exit), nil
	default:
	}
	select {
	case <-m.done:
		return hypervisor.Exit(m.exit), nil
	case <-ctx.Done():
		return hypervisor.Exit{}, ctx.Err()
	}
}

// settle waits for the process, reads what it left and says how it ended.
func (m *machine) settle(events *os.File) {
	<-m.proc.Done()
	console.WaitFor(m.heard, grace)
	_ = events.Close()
	<-m.heard
	m.finish()
	m.mu.Lock()
	m.exit = m.life.exit(m.proc.State(), m.words)
	asked := m.life.asked
	m.mu.Unlock()
	if m.exit.Clean && !asked {
		m.emit(hypervisor.EventPowerOff, "")
	}
	m.mu.Lock()
	m.over = true
	close(m.events)
	m.mu.Unlock()
	close(m.done)
}

// gaveUp is what the VMM says when a virtual CPU could not go on. It ends as if the
// guest had powered off then.
const gaveUp = "VCPU generated error"

// exit judges the end by the process's: the last events can be lost. Clean is a
// guest that powered off, and a VMM that was asked to end, by us or by a SIGTERM as
// systemd sends it, and did.
func (l life) exit(state *os.ProcessState, words *console.Words) exit {
	e := exit{Code: state.ExitCode(), Detail: words.Last()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = -1, unix.SignalName(ws.Signal())
	}
	switch {
	case l.crashed:
		e.Detail = "cloud-hypervisor crashed: " + e.Detail
	case l.reboot && !l.killed:
		return exit{Reboot: true}
	case l.killed:
	case strings.Contains(words.All(), gaveUp):
		e.Detail = "cloud-hypervisor gave up the guest: " + e.Detail
	default:
		e.Clean = e.Code == 0 || l.asked && e.Signal == "SIGTERM"
	}
	return e
}
