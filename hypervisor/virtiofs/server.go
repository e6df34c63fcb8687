// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/daemon"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// server is one running daemon.
type server struct {
	*daemon.Daemon
	share vm.Share
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
	c := &launch.Command{
		Path: d.Path, Args: d.arguments(sh, source, id), Env: []string{}, Dir: "/",
		Identity: id, Mounts: true,
	}
	if sh.ReadOnly && os.Geteuid() == 0 {
		c.ReadOnly = source // whatever becomes of the daemon, it cannot write there
	}
	c.Donate("listening socket", listener)
	run, err := daemon.Start(c, daemon.Log{Of: executable, Prefix: "share " + sh.Tag + ": ", To: s.log})
	if err != nil {
		return nil, err
	}
	return &server{run, sh}, nil
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

// fault says how the daemon ended; it has ended.
func (s *server) fault() error {
	e := &hypervisor.Error{Message: fmt.Sprintf("the virtiofsd of share %s %s", s.share.Tag, s.How())}
	if strings.Contains(s.Words(), "Unshare") {
		e.Cure = "it needs user namespaces: see user.max_user_namespaces, kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns in sysctl; or user: root"
	}
	return e
}

// kill ends the daemon and what it forked: the first process only waits for the
// one in the sandbox, which a signal to the first reaches only if it likes. Of a
// process that was waited for, the number may be another's.
func (s *server) kill() {
	if s.Running() {
		killChildren(s.PID())
	}
	s.Kill()
}
