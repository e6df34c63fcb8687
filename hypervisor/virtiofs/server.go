// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// server is one running daemon.
type server struct {
	share vm.Share
	proc  *launch.Process
	said  *console.Words
	done  chan struct{} // closed when it is gone and its words are read
}

// serve starts the daemon with a listening socket of its own, dir/name.
func (s *Servers) serve(d Daemon, sh vm.Share, name string) (*server, error) {
	id, err := hostcheck.ShareUser(sh)
	if err != nil {
		return nil, err
	}
	if err := d.refuses(sh, id); err != nil {
		return nil, err
	}
	if uid, _ := userOf(id); s.vmm != nil && s.vmm.UID == uid {
		return nil, sameUser(s.vmm)
	}
	source, err := filepath.EvalSymlinks(sh.Source)
	if err != nil {
		return nil, err
	}
	listener, err := s.listen(name)
	if err != nil {
		return nil, err
	}
	defer listener.Close() // the daemon's alone: a connection to a dead one is refused, not kept waiting
	words, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c := &launch.Command{
		Path: d.Path, Args: d.arguments(sh, source, id), Env: []string{}, Dir: "/",
		Stdout: theirs, Stderr: theirs, Identity: id, Mounts: true,
	}
	if sh.ReadOnly && os.Geteuid() == 0 {
		c.ReadOnly = source // whatever becomes of the daemon, it cannot write there
	}
	c.Donate("listening socket", listener)
	proc, err := c.Start()
	if err != nil {
		return nil, errors.Join(err, words.Close())
	}
	said := console.Listen(words, &prefixed{"share " + sh.Tag + ": ", s.log}, "virtiofsd's messages")
	srv := &server{share: sh, proc: proc, said: said, done: make(chan struct{})}
	go srv.settle()
	return srv, nil
}

func sameUser(id *launch.Identity) error {
	return &hypervisor.Error{
		Message: "a share's daemon cannot run as the hypervisor's own user " + hostcheck.UserName(id) + ", who could then write what the guest may only read",
		Cure:    "give the share another user:",
	}
}

// listen makes the socket, which the VMM's user alone may connect to.
func (s *Servers) listen(name string) (*os.File, error) {
	path := s.path(name)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "virtiofsd's socket")
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1))
	}
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil && s.vmm != nil {
		err = os.Lchown(path, int(s.vmm.UID), int(s.vmm.GID))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// settle reads the daemon's last words.
func (s *server) settle() {
	<-s.proc.Done()
	s.said.Finish(time.Second)
	close(s.done)
}

// fault says how the daemon ended; it has ended.
func (s *server) fault() error {
	state := s.proc.State()
	how := fmt.Sprintf("exit status %d", state.ExitCode())
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		how = unix.SignalName(ws.Signal())
	}
	words := s.said.All()
	if words == "" {
		words = "and said nothing"
	}
	e := &hypervisor.Error{Message: fmt.Sprintf("the virtiofsd of share %s ended (%s): %s", s.share.Tag, how, words)}
	if strings.Contains(words, "Unshare") {
		e.Cure = "it needs user namespaces: see user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns in sysctl; or user: root"
	}
	return e
}

// healthy: it ended because nobody is connected any more.
func (s *server) healthy() bool {
	state := s.proc.State()
	return state != nil && state.ExitCode() == 0
}

// kill ends the daemon and what it forked: the first process only waits for the
// one in the sandbox, which a signal to the first reaches only if it likes.
func (s *server) kill() {
	killChildren(s.proc.PID())
	_ = s.proc.Kill()
	<-s.done
}

// prefixed puts a few words before each line.
type prefixed struct {
	prefix string
	to     io.Writer
}

func (p *prefixed) Write(b []byte) (int, error) {
	if p.to == nil {
		return len(b), nil
	}
	var out []byte
	for line := range bytes.Lines(b) {
		out = append(append(out, p.prefix...), line...)
	}
	if _, err := p.to.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
