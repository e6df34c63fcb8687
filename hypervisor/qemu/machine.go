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
	"time"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/process"
	"github.com/vmcred/vmcred/hypervisor/qemu/qmp"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
)

// grace is how long what QEMU left behind may take to be read and written once
// its process is gone.
const grace = time.Second

// machine is one running QEMU.
type machine struct {
	*process.Process
	qmp     *qmp.Client
	console *console.Console
	said    *console.Words
	shares  *virtiofs.Servers
	vsock   *link
	stops   chan struct{} // QEMU stopped the guest, and nobody has asked why yet
	asked   chan struct{} // closed when nobody will ask any more

	mu   sync.Mutex // guards what follows
	life life
}

// life is what QEMU and we said about the VM's end.
type life struct {
	reason string // of SHUTDOWN, as "guest-shutdown"
	asked  bool   // we asked QEMU to end
	fault  string // QEMU gave the guest up
}

// newMachine takes over the process and all that is connected to it.
func newMachine(proc *launch.Process, control net.Conn, c *console.Console, s *console.Words, shares *virtiofs.Servers, vsock *link) *machine {
	m := &machine{
		Process: process.New(proc), console: c, said: s, shares: shares, vsock: vsock,
		stops: make(chan struct{}, 1), asked: make(chan struct{}),
	}
	c.Started()
	m.qmp = qmp.New(control, m.heard)
	go m.askWhy()
	shares.Watch(proc.Done(), func(err error) { m.Emit(hypervisor.EventShareLost, err.Error()) })
	vsock.daemon.Watch(proc.Done(), func(err error) { s.Line("the VM goes on without vsock: " + err.Error()) })
	go m.settle()
	return m
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
		m.Emit(hypervisor.EventRunning, "")
	case "SHUTDOWN":
		m.shutdown(data.Reason)
	case "GUEST_PANICKED":
		m.Emit(hypervisor.EventPanic, "")
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
		m.Emit(hypervisor.EventPowerOff, "")
	case "guest-reset":
		m.Emit(hypervisor.EventReboot, "")
	case "guest-panic":
		m.Emit(hypervisor.EventPanic, "")
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
		_ = m.Process.Process.Kill()
	case "io-error":
		m.said.Line("the guest is paused: one of its disks cannot be written; is the file system full?")
	case "shutdown", "prelaunch":
	default:
		m.said.Line("the guest is paused: " + now.Status)
	}
}

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
		err = m.Terminate()
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
	return m.life.reason != "" || m.State() != nil
}

// connectionLost tells a control connection that is of no use any more.
func connectionLost(err error) bool {
	var refused *qmp.CommandError
	return !errors.As(err, &refused) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

// settle waits for the process, reads what it left and says how it ended.
func (m *machine) settle() {
	<-m.Done()
	console.WaitFor(m.qmp.Done(), grace)
	_ = m.qmp.Close() // its reader, which fills m.stops, is gone then
	close(m.stops)
	<-m.asked
	m.shares.Finish(grace)
	m.vsock.finish()
	m.console.Finish(grace)
	m.said.Finish(grace)
	m.mu.Lock()
	e := m.life.exit(m.State(), m.Killed(), m.said.Last())
	m.mu.Unlock()
	m.Settle(e)
}

// exit judges the end: clean is a guest that powered off, and a QEMU that was
// asked to end, by us or by a SIGTERM as systemd sends it, and did.
func (l life) exit(state *os.ProcessState, killed bool, last string) hypervisor.Exit {
	e := process.Exit(state)
	e.Detail = last
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
		e.Clean = l.asked && !killed && (e.Code == 0 || e.Signal == "SIGTERM")
	}
	return e
}
