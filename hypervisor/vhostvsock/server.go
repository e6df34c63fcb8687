// SPDX-License-Identifier: Apache-2.0

package vhostvsock

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/daemon"
	"github.com/vmcred/vmcred/internal/launch"
)

// control is the socket in the VM's directory by which a VMM connects to the daemon.
const control = "vhost"

// Server is one running daemon. A nil one is none.
type Server struct {
	*daemon.Daemon
	o StartOptions

	mu    sync.Mutex // guards what follows
	ended bool       // we end it ourselves
}

// StartOptions are what a start needs.
type StartOptions struct {
	Daemon
	CID uint32 // the guest's
	// Dir is the directory of the VM's sockets, which belongs to the VMM's user. It
	// stays the caller's, and is open until Finish has returned.
	Dir *os.File
	// Socket is the host's end of the vsock for a process that has Dir as that
	// descriptor: guests connect to PORT of their host by Socket(fd)_PORT.
	Socket   func(fd int) string
	Identity *launch.Identity // the VMM's user; nil: our own
	Log      io.Writer        // what the daemon says, line by line; nil: nobody hears it
}

// Start starts the daemon. On an error nothing is left running.
func Start(o StartOptions) (*Server, error) {
	c := &launch.Command{Path: o.Path, Env: []string{}, Dir: "/", Identity: o.Identity}
	fd := c.Donate("the sockets' directory", o.Dir)
	c.Args = []string{
		"--guest-cid=" + strconv.FormatUint(uint64(o.CID), 10),
		"--socket=" + inDir(uintptr(fd), control), "--uds-path=" + o.Socket(fd),
	}
	d, err := daemon.Start(c, daemon.Log{Of: Executable, Prefix: "vsock: ", To: o.Log})
	if err != nil {
		return nil, err
	}
	return &Server{Daemon: d, o: o}, nil
}

func inDir(fd uintptr, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// Dial returns a connection to the daemon, to be given to the VMM; it waits until
// the daemon listens. There can be one only.
func (s *Server) Dial(ctx context.Context) (*os.File, error) {
	conn, err := s.dial(ctx)
	if err == nil {
		return conn, nil
	}
	if daemon.Closed(s.Done(), 0) {
		return nil, s.fault()
	}
	return nil, &hypervisor.Error{Message: "connecting to " + Executable, Err: err}
}

// Watch calls lost when the daemon is gone while the VMM still runs: the guest goes
// on without vsock. It is called by another goroutine.
func (s *Server) Watch(vmmDone <-chan struct{}, lost func(error)) {
	if s == nil {
		return
	}
	go s.watch(vmmDone, lost)
}

func (s *Server) watch(vmmDone <-chan struct{}, lost func(error)) {
	if s.Outlived(vmmDone) && !s.ending() {
		lost(s.fault())
	}
}

func (s *Server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// fault says how the daemon ended; it has ended.
func (s *Server) fault() error { return &hypervisor.Error{Message: Executable + " " + s.How()} }

// Finish ends the daemon: the VMM is gone. By itself it would wait for another.
func (s *Server) Finish() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.Kill()
}
