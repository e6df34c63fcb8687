// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/qemu/qmp"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
)

// grace is how long what QEMU left behind may take to be read and written once
// its process is gone.
const grace = time.Second

// machine is one running QEMU.
type machine struct {
	proc    *launch.Process
	qmp     *qmp.Client
	console *console.Console
	said    *console.Words
	shares  *virtiofs.Servers
	vsock   *link
	events  chan hypervisor.Event // room for each kind once, so nothing waits for a reader
	stops   chan struct{}         // QEMU stopped the guest, and nobody has asked why yet
	asked   chan struct{}         // closed when nobody will ask any more
	done    chan struct{}         // closed when all is over; exit is set before
	exit    exit

	mu      sync.Mutex // guards what follows
	emitted map[hypervisor.EventKind]bool
	over    bool // no more events
	life    life
}

// life is what QEMU and we said about the VM's end.
type life struct {
	reason string // of SHUTDOWN, as "guest-shutdown"
	asked  bool   // we asked QEMU to end
	killed bool   // we killed it
	fault  string // QEMU gave the guest up
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
func newMachine(proc *launch.Process, control net.Conn, c *console.Console, s *console.Words, shares *virtiofs.Servers, vsock *link) *machine {
	m := &machine{
		proc: proc, console: c, said: s, shares: shares, vsock: vsock,
		events:  make(chan hypervisor.Event, 8),
		emitted: make(map[hypervisor.EventKind]bool),
		stops:   make(chan struct{}, 1), asked: make(chan struct{}),
		done: make(chan struct{}),
	}
	c.Started()
	m.qmp = qmp.New(control, m.heard)
	go m.askWhy()
	shares.Watch(proc.Done(), func(err error) { m.emit(hypervisor.EventShareLost, err.Error()) })
	vsock.daemon.Watch(proc.Done(), func(err error) { s.Line("the VM goes on without vsock: " + err.Error()) })
	go m.settle()
	return m
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

// heard is called for each of QEMU's events, in order, by the reader.
func (m *machine) heard(e qmp.Event) {
	var data struct {
		Reason    string `json:"reason"`
		Node      string `json:"node-name"`
		Operation string `json:"operation"`
		Action    string `json:"action"`
	}
	_ = json.Unmarshal(e.Data, &data) // what is missing or odd stays empty
	switch e.Name {
	case "RESUME":
		m.emit(hypervisor.EventRunning, "")
	case "SHUTDOWN":
		m.shutdown(data.Reason)
	case "GUEST_PANICKED":
		m.emit(hypervisor.EventPanic, "")
	case "BLOCK_IO_ERROR":
		m.said.Line(fmt.Sprintf("%s: %s error: %s (%s)", data.Node, data.Operation, data.Reason, data.Action))
	case "STOP":
		// It takes a question, and this is who reads the answer. One question for
		// any number of stops: a QEMU that is taken over can send them without end.
		select {
		case m.stops <- struct{}{}:
		default:
		}
	}
}

// askWhy asks after each stop, one question at a time.
func (m *machine) askWhy() {
	defer close(m.asked)
	for range m.stops {
		m.paused()
	}
}

func (m *machine) shutdown(reason string) {
	m.mu.Lock()
	m.life.reason = reason
	m.mu.Unlock()
	switch reason {
	case "guest-shutdown":
		m.emit(hypervisor.EventPowerOff, "")
	case "guest-reset":
		m.emit(hypervisor.EventReboot, "")
	case "guest-panic":
		m.emit(hypervisor.EventPanic, "")
	}
}

// paused says why the guest stands still without anybody having asked for it.
// After an error inside the hypervisor it never goes on, so QEMU is killed.
func (m *machine) paused() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := m.qmp.Execute(ctx, "query-status")
	var now struct {
		Running bool
		Status  string
	}
	if err != nil || json.Unmarshal(answer, &now) != nil || now.Running {
		return
	}
	switch now.Status {
	case "internal-error":
		m.mu.Lock()
		m.life.fault = "QEMU gave up the guest: internal error of the accelerator"
		m.mu.Unlock()
		_ = m.proc.Kill()
	case "io-error":
		m.said.Line("the guest is paused: one of its disks cannot be written; is the file system full?")
	case "shutdown", "prelaunch":
	default:
		m.said.Line("the guest is paused: " + now.Status)
	}
}

// Events implements [hypervisor.Machine].
func (m *machine) Events() <-chan hypervisor.Event { return m.events }

// PID implements [hypervisor.Machine].
func (m *machine) PID() int { return m.proc.PID() }

// Confinement implements [hypervisor.Machine]. QEMU adds a seccomp filter.
func (m *machine) Confinement() string { return m.proc.Confinement() + ", seccomp" }

// Shutdown presses the power button. It does nothing once the VM has ended.
func (m *machine) Shutdown(ctx context.Context) error {
	_, err := m.qmp.Execute(ctx, "system_powerdown")
	if err == nil || m.ending() {
		return nil
	}
	return fmt.Errorf("pressing the power button: %w", err)
}

// Quit asks QEMU to end, by a signal if its control connection is gone.
func (m *machine) Quit(ctx context.Context) error {
	m.mu.Lock()
	m.life.asked = true
	m.mu.Unlock()
	_, err := m.qmp.Execute(ctx, "quit")
	if err == nil || m.ending() {
		return nil
	}
	if connectionLost(err) {
		if err = m.proc.Signal(unix.SIGTERM); errors.Is(err, os.ErrProcessDone) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("asking QEMU to end: %w", err)
	}
	return nil
}

// ending says whether QEMU is gone or has announced that it goes.
func (m *machine) ending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life.reason != "" || m.proc.State() != nil
}

// connectionLost tells a control connection that is of no use any more.
func connectionLost(err error) bool {
	var refused *qmp.CommandError
	return !errors.As(err, &refused) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

// Kill ends QEMU at once, also a stopped one.
func (m *machine) Kill() error {
	m.mu.Lock()
	m.life.killed = true
	m.mu.Unlock()
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
func (m *machine) settle() {
	<-m.proc.Done()
	console.WaitFor(m.qmp.Done(), grace)
	_ = m.qmp.Close() // its reader, which fills m.stops, is gone then
	close(m.stops)
	<-m.asked
	m.shares.Finish(grace)
	m.vsock.finish()
	m.console.Finish(grace)
	m.said.Finish(grace)
	m.mu.Lock()
	m.exit = m.life.exit(m.proc.State(), m.said.Last())
	m.over = true
	close(m.events)
	m.mu.Unlock()
	close(m.done)
}

// exit judges the end: clean is a guest that powered off, and a QEMU that was
// asked to end, by us or by a SIGTERM as systemd sends it, and did.
func (l life) exit(state *os.ProcessState, last string) exit {
	e := exit{Code: state.ExitCode(), Detail: last}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = -1, unix.SignalName(ws.Signal())
	}
	if l.fault != "" {
		e.Detail = l.fault
		return e
	}
	switch l.reason {
	case "guest-shutdown", "host-qmp-quit", "host-signal":
		e.Clean = e.Code == 0
	case "guest-reset":
		e.Reboot = e.Code == 0
	case "":
		// A SIGTERM before QEMU handles it, or a quit whose event was lost.
		e.Clean = l.asked && !l.killed && (e.Code == 0 || e.Signal == "SIGTERM")
	}
	return e
}
