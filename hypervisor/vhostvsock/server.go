// SPDX-License-Identifier: Apache-2.0

package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
)

// grace is how long what the daemon said may take to be read once it is gone, and
// how long it may be gone before its VMM is.
const grace = time.Second

// control is the socket in the VM's directory by which a VMM connects to the daemon.
const control = "vhost"

// Server is one running daemon. A nil one is none.
type Server struct {
	o    StartOptions
	proc *launch.Process
	said *console.Words
	done chan struct{} // closed when it is gone and its words are read

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
	words, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c := &launch.Command{
		Path: o.Path, Env: []string{}, Dir: "/",
		Stdout: theirs, Stderr: theirs, Identity: o.Identity,
	}
	fd := c.Donate("the sockets' directory", o.Dir)
	c.Args = []string{
		"--guest-cid=" + strconv.FormatUint(uint64(o.CID), 10),
		"--socket=" + inDir(uintptr(fd), control), "--uds-path=" + o.Socket(fd),
	}
	proc, err := c.Start()
	if err != nil {
		return nil, errors.Join(err, words.Close())
	}
	s := &Server{
		o: o, proc: proc, done: make(chan struct{}),
		said: console.Listen(words, &prefixed{"vsock: ", o.Log}, "vhost-device-vsock's messages"),
	}
	go s.settle()
	return s, nil
}

func inDir(fd uintptr, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// settle reads the daemon's last words.
func (s *Server) settle() {
	<-s.proc.Done()
	s.said.Finish(grace)
	close(s.done)
}

// PID is the daemon's process number.
func (s *Server) PID() int { return s.proc.PID() }

// Dial returns a connection to the daemon, to be given to the VMM; it waits until
// the daemon listens. There can be one only.
func (s *Server) Dial(ctx context.Context) (*os.File, error) {
	conn, err := s.dial(ctx)
	if err == nil {
		return conn, nil
	}
	if gone(s.done) {
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
	select {
	case <-vmmDone:
		return
	case <-s.done:
	}
	console.WaitFor(vmmDone, grace) // all of a VM may be killed at once
	if !gone(vmmDone) && !s.ending() {
		lost(s.fault())
	}
}

func gone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func (s *Server) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// fault says how the daemon ended; it has ended.
func (s *Server) fault() error {
	state := s.proc.State()
	how := fmt.Sprintf("exit status %d", state.ExitCode())
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		how = unix.SignalName(ws.Signal())
	}
	words := s.said.All()
	if words == "" {
		words = "and said nothing"
	}
	return &hypervisor.Error{Message: fmt.Sprintf("%s ended (%s): %s", Executable, how, words)}
}

// Finish ends the daemon: the VMM is gone. By itself it would wait for another.
func (s *Server) Finish() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	_ = s.proc.Kill()
	<-s.done
}

// prefixed puts a few words before each line; it is given whole ones.
type prefixed struct {
	prefix string
	to     io.Writer
}

func (p *prefixed) Write(b []byte) (int, error) {
	if p.to == nil {
		return len(b), nil
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		out.WriteString(p.prefix + line)
	}
	if _, err := io.WriteString(p.to, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}
