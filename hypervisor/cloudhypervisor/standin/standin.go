// SPDX-License-Identifier: Apache-2.0

// Package standin plays cloud-hypervisor v53 for machines that have none, or no
// KVM: its command line, its API, its events and its ends, and a guest that does
// what the probe guest would. It is as strict as the real program and as lax; the
// test beside it runs the same exchanges on both. Tests only.
//
// What it does not play it refuses in words of its own, never silently: other
// command line options, hot-plugging, migration, consoles other than a file.
package standin

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is what the stand-in says it is.
const Version = "53.0"

// Options are what a test can change.
type Options struct {
	// VhostWait is how long vm.boot waits for a vhost-user socket that is not
	// there; 0 is the real program's minute.
	VhostWait time.Duration
}

// IsCall says whether a program was started as cloud-hypervisor is, for a test
// binary that also plays the VMM. args are os.Args.
func IsCall(args []string) bool {
	if len(args) < 2 {
		return false
	}
	name, _, _ := strings.Cut(args[1], "=")
	return name == "--version" || name == "-V" || name == "--api-socket" || name == "--event-monitor"
}

// Main plays cloud-hypervisor from its arguments to its exit status.
func Main(args []string, o Options) int {
	call, code := parse(args)
	if call == nil {
		return code
	}
	events, err := inherited(call["--event-monitor"])
	if err != nil {
		return fatal("Error doing event monitor I/O", err)
	}
	socket, err := inherited(call["--api-socket"])
	if err != nil || socket == nil {
		return fatal("Error parsing --api-socket", err)
	}
	listener, err := net.FileListener(socket)
	if err != nil {
		return fatal("Error creating API server", err)
	}
	_ = socket.Close()
	if o.VhostWait == 0 {
		o.VhostWait = time.Minute
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	v := newVMM(o, newMonitor(events))
	v.events.say("vmm", "starting")
	go newServer(v, listener).serve()
	select {
	case <-ends:
	case <-v.quit:
	}
	v.end()
	return 0
}

// parse returns the two options by their names, or nil and what to exit with.
func parse(args []string) (map[string]string, int) {
	call := map[string]string{}
	version := false
	for i := 0; i < len(args); i++ {
		name, value, joined := strings.Cut(args[i], "=")
		switch name {
		case "--version", "-V":
			version = true
			continue
		case "--api-socket", "--event-monitor":
		default:
			return nil, usage("unexpected argument '" + args[i] + "' found")
		}
		if _, twice := call[name]; twice {
			return nil, usage("the argument '" + name + "' cannot be used multiple times")
		}
		if !joined {
			if i++; i == len(args) {
				return nil, usage("a value is required for '" + name + "' but none was supplied")
			}
			value = args[i]
		}
		call[name] = value
	}
	if version {
		fmt.Printf("cloud-hypervisor v%s\nMigration Protocol Versions: 0\n", Version)
		return nil, 0
	}
	if len(call) == 0 {
		return nil, usage("nothing to do")
	}
	return call, 0
}

func usage(what string) int {
	fmt.Fprintf(os.Stderr, "error: %s\n\nUsage: cloud-hypervisor [OPTIONS]\n\nFor more information, try '--help'.\n", what)
	return 2
}

func fatal(what string, err error) int {
	fmt.Fprintf(os.Stderr, "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: %s\n  1: %v\n", what, err)
	return 1
}

// inherited is the open file that "fd=N" names; nil for an option not given.
func inherited(value string) (*os.File, error) {
	if value == "" {
		return nil, nil
	}
	number, ok := strings.CutPrefix(value, "fd=")
	if !ok {
		return nil, fmt.Errorf("the stand-in knows fd=N only, this is %q", value)
	}
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("unable to convert %s for fd", number)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), value), nil
}
