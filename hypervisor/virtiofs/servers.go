// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/daemon"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// grace is how long a daemon that refuses a connection may take to end.
const grace = time.Second

// Servers are the daemons of one VM's shares. A nil one has none.
type Servers struct {
	vmm     *launch.Identity
	log     io.Writer
	dir     *os.File // of the sockets, O_PATH; nil without one
	shares  []vm.Share
	running []*server // by share; nil where another program serves it

	mu    sync.Mutex // guards what follows
	ended bool       // we end them ourselves
	fault error
}

// StartOptions are what a start needs.
type StartOptions struct {
	Options
	RunDir string           // the VM's own runtime directory, absolute, mode 0700
	VMM    *launch.Identity // the user who may connect; nil: our own
	Log    io.Writer        // what the daemons say, line by line
}

// Start starts a daemon for each share that has no Socket. On an error nothing is
// left running. Without shares it returns nil.
func Start(ctx context.Context, shares []vm.Share, o StartOptions) (*Servers, error) {
	if len(shares) == 0 {
		return nil, nil
	}
	s := &Servers{vmm: o.VMM, log: o.Log, shares: shares, running: make([]*server, len(shares))}
	var d Daemon
	for i, sh := range shares {
		if sh.Socket != "" {
			continue
		}
		err := s.directory(o.RunDir)
		if err == nil && d.Path == "" {
			d, err = Probe(ctx, o.Options)
		}
		if err == nil {
			s.running[i], err = s.serve(d, sh, socketName(i))
		}
		if err != nil {
			s.Finish(0)
			return nil, &hypervisor.Error{Message: "share " + sh.Tag, Err: err}
		}
	}
	return s, nil
}

// directory makes the sockets' own: the VMM's user may look up a name in it, but
// only the VMM has it, as a descriptor, while RunDir is closed to it.
func (s *Servers) directory(runDir string) error {
	if s.dir != nil {
		return nil
	}
	path := filepath.Join(runDir, "shares")
	if err := os.RemoveAll(path); err != nil { // of an earlier boot of this guest
		return err
	}
	if err := os.Mkdir(path, 0o711); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	s.dir = os.NewFile(uintptr(fd), path)
	return os.Chmod(path, 0o711) // whatever the umask
}

func socketName(i int) string { return strconv.Itoa(i) + ".sock" }

// path is a socket's through the directory's descriptor: the real one may be too
// long for an address.
func (s *Servers) path(name string) string { return through(s.dir.Fd(), name) }

func through(fd uintptr, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// Directory is to be donated to a VMM that connects by itself; nil if it needs
// none. It stays ours.
func (s *Servers) Directory() *os.File {
	if s == nil {
		return nil
	}
	return s.dir
}

// SocketPath is the socket of the i-th share for a VMM to which [Servers.Directory]
// was donated as that descriptor.
func (s *Servers) SocketPath(i, fd int) string {
	if path := s.shares[i].Socket; path != "" {
		return path
	}
	return through(uintptr(fd), socketName(i))
}

// Dial returns a connection to the i-th share's daemon, for a VMM that takes one.
// There can be one only.
func (s *Servers) Dial(i int) (*os.File, error) {
	path := s.shares[i].Socket
	if path == "" {
		path = s.path(socketName(i))
	}
	conn, err := connect(path, "share "+s.shares[i].Tag)
	if err != nil {
		if srv := s.running[i]; srv != nil && daemon.Closed(srv.Done(), grace) {
			err = srv.fault()
		}
		return nil, &hypervisor.Error{Message: "share " + s.shares[i].Tag, Err: err}
	}
	return conn, nil
}

// connect does not wait for a program that takes no more connections. What it
// returns is a blocking socket, as a VMM expects it.
func connect(path, name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if errors.Is(err, unix.EAGAIN) {
		err = errors.New("who serves it takes no more connections: does another VM have it?")
	} else if err != nil {
		err = os.NewSyscallError("connect", err)
	}
	if err = cmp.Or(err, unix.SetNonblock(fd, false)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Watch calls lost, once at most, when a daemon is gone while the VMM still runs:
// what the guest does in that share never returns. It is called by another goroutine.
func (s *Servers) Watch(vmmDone <-chan struct{}, lost func(error)) {
	if s == nil {
		return
	}
	var once sync.Once
	for _, srv := range s.running {
		if srv == nil {
			continue
		}
		go func() {
			if srv.Outlived(vmmDone) && !s.ending() {
				once.Do(func() { lost(srv.fault()) })
			}
		}()
	}
}

func (s *Servers) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// Fault is what the first daemon that failed by itself said, or nil.
func (s *Servers) Fault() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, srv := range s.running {
		if s.fault == nil && !s.ended && srv != nil && daemon.Closed(srv.Done(), 0) && !srv.EndedWell() {
			s.fault = srv.fault()
		}
	}
	return s.fault
}

// Finish ends them: the VMM is gone, and they with it; what is left after the
// patience is killed. What one of them died of [Servers.Fault] says.
func (s *Servers) Finish(patience time.Duration) {
	if s == nil {
		return
	}
	deadline := time.Now().Add(patience)
	for _, srv := range s.running {
		if srv != nil {
			console.WaitFor(srv.Done(), time.Until(deadline))
		}
	}
	_ = s.Fault() // before we kill one
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	for _, srv := range s.running {
		if srv != nil {
			srv.kill()
		}
	}
	if s.dir != nil {
		_ = os.RemoveAll(s.dir.Name())
		_ = s.dir.Close()
		s.dir = nil
	}
}
