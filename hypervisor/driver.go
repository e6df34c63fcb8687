// SPDX-License-Identifier: Apache-2.0

// Package hypervisor is what the runner knows of a virtual machine monitor
// (VMM): how to ask it what it can carry, start a VM with it and follow its
// life. Each driver is a package below this one.
package hypervisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// Driver starts VMs with one kind of VMM.
type Driver interface {
	// Probe finds the VMM on this host and asks what it is.
	Probe(ctx context.Context) (Info, error)
	// Check lists what in the specification this driver cannot do on this host.
	Check(*vm.Spec, Info) []vm.Problem
	// Offers says what this VMM can carry to this guest on this host.
	Offers(*vm.Spec, Info) []delivery.Offer
	// Command returns the argument vector Start would use, with "<fd>" for each
	// inherited descriptor. It holds no value of a credential.
	Command(*vm.Spec, Info, delivery.Plan) []string
	// Start starts the VM. On error nothing of it is left running.
	Start(ctx context.Context, l Launch) (Machine, error)
}

// Info is what Probe found.
type Info struct {
	Path    string `json:"path"`    // the VMM's executable
	Version string `json:"version"` // as the VMM itself gives it, "7.2.22"
	Accel   string `json:"accel"`   // the accelerator "auto" stands for here: "kvm" or "tcg"
	Why     string `json:"why"`     // one line: why that accelerator
}

// ConsoleSocket is the name of the console's socket in a VM's runtime directory,
// with console: socket. Mode 0600, and one client at a time.
const ConsoleSocket = "console.sock"

// ConsoleSockets are the places where it can be in a VM's runtime directory: we made
// it, or the VMM did in the directory that is its user's (hypervisor/vsock).
func ConsoleSockets(runDir string) []string {
	return []string{filepath.Join(runDir, ConsoleSocket), filepath.Join(runDir, "vsock", ConsoleSocket)}
}

// Launch is everything Start needs.
type Launch struct {
	Spec *vm.Spec
	Info Info
	Plan delivery.Plan
	// Deliver returns the encoded values. It is called once, as late as can be.
	// The driver closes the payload as soon as the VMM has it.
	Deliver func(context.Context) (*delivery.Payload, error)
	// Identity is the user the VMM runs as; nil: the runner's own.
	Identity *launch.Identity
	RunDir   string // the VM's own runtime directory, absolute, mode 0700, for sockets
	// Ports are the vsock ports of the host that the guest may connect to, each with
	// who answers and closes the connection. They are open before the guest runs, and
	// closed when the VMM is gone. With one, Spec.Vsock is not nil.
	Ports   map[uint32]func(net.Conn)
	Console io.Writer // the guest's serial output with console: stdout
	Log     io.Writer // what the VMM itself says, line by line
}

// Machine is one running VM.
type Machine interface {
	// Events delivers the VM's life in order. It is closed after the VMM has ended.
	Events() <-chan Event
	// Shutdown presses the power button. The guest may ignore it.
	Shutdown(context.Context) error
	// Quit asks the VMM itself to end, without asking the guest.
	Quit(context.Context) error
	// Kill ends the VMM at once. It returns when the process is gone.
	Kill() error
	// Wait returns when the VMM's process is gone.
	Wait(context.Context) (Exit, error)
	// PID is the VMM's process.
	PID() int
	// Confinement says in a few words how the VMM is confined.
	Confinement() string
}

// EventKind is what happened to a VM.
type EventKind string

// The kinds of events.
const (
	EventDelivered EventKind = "delivered" // the VMM has every credential
	EventRunning   EventKind = "running"   // the guest runs
	EventPowerOff  EventKind = "power-off" // the guest powered off
	EventReboot    EventKind = "reboot"    // the guest asked for a reboot; the VMM ends
	EventPanic     EventKind = "panic"     // the guest's kernel panicked
	// EventShareLost: the daemon of a share is gone, and what the guest does there
	// never returns. The VM should be ended. Detail says which and why.
	EventShareLost EventKind = "share-lost"
)

// Event is one step in a VM's life.
type Event struct {
	Kind   EventKind
	Detail string // a few words for people, or empty
}

// Exit is how a VMM's process ended.
type Exit struct {
	Code   int    // its exit status, -1 if a signal ended it
	Signal string // the signal's name, or empty
	Reboot bool   // the guest asked for a reboot
	Clean  bool   // the guest powered off, or we asked the VMM to end
	Detail string // the last line the VMM itself said, or empty
}

// How is its status in words: "exit status 1", "signal SIGKILL".
func (e Exit) How() string {
	if e.Signal != "" {
		return "signal " + e.Signal
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// AccessChecker is a Driver that can tell before a start what the VMM's user
// may not open. Check knows no user.
type AccessChecker interface {
	// CheckAccess lists the files, devices and taps of the specification that
	// this user may not open as the VMM will; nil is the process's own user. It
	// refuses what a guest with secrets boots from if others can write it.
	CheckAccess(*vm.Spec, Info, *launch.Identity) []vm.Problem
}
