// SPDX-License-Identifier: Apache-2.0

// Package process is a VMM's process as every driver has one: what it says of a VM's
// life, each thing once, and its end.
package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
)

// kinds is more than there are kinds of events: each comes once, so nothing ever
// waits for who reads them.
const kinds = 16

// Process is one running VMM. A driver embeds it and calls Settle once it has read
// all that the VMM left behind.
type Process struct {
	*launch.Process

	events chan hypervisor.Event
	over   chan struct{}   // closed when all is over; exit is set before
	exit   hypervisor.Exit // how it ended

	mu      sync.Mutex // guards what follows
	emitted map[hypervisor.EventKind]bool
	settled bool // no more events
	killed  bool // Kill was called
}

// New takes over the process, which runs.
func New(p *launch.Process) *Process {
	return &Process{
		Process: p, events: make(chan hypervisor.Event, kinds), over: make(chan struct{}),
		emitted: make(map[hypervisor.EventKind]bool),
	}
}

// Emit passes each kind on once, until the end.
func (p *Process) Emit(kind hypervisor.EventKind, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled || p.emitted[kind] {
		return
	}
	p.emitted[kind] = true
	p.events <- hypervisor.Event{Kind: kind, Detail: detail}
}

// Events implements [hypervisor.Machine].
func (p *Process) Events() <-chan hypervisor.Event { return p.events }

// Confinement implements [hypervisor.Machine]. A VMM adds a seccomp filter of its own.
func (p *Process) Confinement() string { return p.Process.Confinement() + ", seccomp" }

// Kill ends the VMM at once, also a stopped one, and returns when all is over.
func (p *Process) Kill() error {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	if err := p.Process.Kill(); err != nil {
		return err
	}
	<-p.over
	return nil
}

// Killed says whether it was Kill that ended it, or tried to.
func (p *Process) Killed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

// Terminate asks by a signal. One that is gone has done as asked.
func (p *Process) Terminate() error {
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Wait implements [hypervisor.Machine]. All output has been passed on then, as
// far as its reader took it.
func (p *Process) Wait(ctx context.Context) (hypervisor.Exit, error) {
	select {
	case <-p.over:
		return p.exit, nil
	default: // how it ended, also where nobody waits any more
	}
	select {
	case <-p.over:
		return p.exit, nil
	case <-ctx.Done():
		return hypervisor.Exit{}, ctx.Err()
	}
}

// Over is closed when all is over.
func (p *Process) Over() <-chan struct{} { return p.over }

// Settle says how it ended. It is called once, when the process is gone.
func (p *Process) Settle(e hypervisor.Exit) {
	p.mu.Lock()
	p.exit, p.settled = e, true
	close(p.events)
	p.mu.Unlock()
	close(p.over)
}

// Exit is how a process ended, by its own status.
func Exit(state *os.ProcessState) hypervisor.Exit {
	e := hypervisor.Exit{Code: state.ExitCode()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = -1, unix.SignalName(ws.Signal())
	}
	return e
}
