// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

// Listen binds the unix socket to which a VMM connects when its guest connects to
// this port of the host, where socketName is the name of the VMM's own socket in
// the directory. Do it before the VMM starts: a guest whose host does not listen
// is refused. Only the VMM's user (nil: our own) may connect.
func Listen(d *Dir, socketName string, port uint32, id *launch.Identity) (net.Listener, error) {
	if err := checkName(socketName); err != nil {
		return nil, err
	}
	name := socketName + "_" + strconv.FormatUint(uint64(port), 10)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil, fmt.Errorf("listening on %s: %w", d.Path(name), os.ErrClosed)
	}
	// By descriptor: the true path may be longer than a sockaddr_un.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: procPath(d.file) + "/" + name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", d.Path(name), plain(err))
	}
	l.SetUnlinkOnClose(false) // its path is no longer that of this directory when that is closed
	u := &unixListener{UnixListener: l, dir: d, name: name}
	if err := d.giveSocket(name, id); err != nil {
		_ = l.Close()
		u.unlink()
		return nil, fmt.Errorf("giving %s to the VMM's user: %w", d.Path(name), err)
	}
	return u, nil
}

// plain is a network error's cause, without the path in /proc.
func plain(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}

// giveSocket makes the VMM's user the only one who may connect.
func (d *Dir) giveSocket(name string, id *launch.Identity) error {
	fd, err := unix.Openat(int(d.file.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return give(f, unix.S_IFSOCK, 0o600, id)
}

type unixListener struct {
	*net.UnixListener
	dir  *Dir
	name string
}

// Close stops listening and removes the socket.
func (l *unixListener) Close() error {
	if err := l.UnixListener.Close(); err != nil {
		return err
	}
	l.dir.mu.Lock()
	defer l.dir.mu.Unlock()
	l.unlink()
	return nil
}

func (l *unixListener) unlink() {
	if l.dir.file != nil {
		_ = unix.Unlinkat(int(l.dir.file.Fd()), l.name, 0)
	}
}
