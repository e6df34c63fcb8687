// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// consoleSocket is the socket's name in the VM's runtime directory.
const consoleSocket = "console.sock"

// console is the guest's serial port on this side.
type console struct {
	child  *os.File // QEMU's end, nil with console: off
	ours   net.Conn // stdout only: QEMU's end is the other of a pair
	out    *sink
	done   chan struct{} // stdout only: closed when all was read
	socket string        // the socket's path, removed at the end
}

// openConsole makes what the mode needs. A file is opened here, as this process's
// user: created with mode 0600, appended to, never through a link at its end.
func openConsole(c vm.Console, runDir string, id *launch.Identity, w io.Writer) (*console, error) {
	switch c.Mode {
	case vm.ConsoleOff:
		return &console{}, nil
	case vm.ConsoleFile:
		f, err := openLog(c.Path, id)
		if err != nil {
			return nil, &Error{Message: "the console's file", Err: err}
		}
		return &console{child: f}, nil
	case vm.ConsoleSocket:
		path := filepath.Join(runDir, consoleSocket)
		f, err := listenUnix(path)
		if err != nil {
			return nil, &Error{Message: "the console's socket", Err: err}
		}
		return &console{child: f, socket: path}, nil
	default:
		ours, child, err := socketPair("console")
		if err != nil {
			return nil, &Error{Message: "the console's pair of sockets", Err: err}
		}
		return &console{child: child, ours: ours, out: newSink(w, "console output")}, nil
	}
}

// openLog opens the console's file for a VMM of that user; nil is the process's own.
func openLog(path string, id *launch.Identity) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		err = checkLog(path, st, id)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkLog refuses what the guest should not write to: another file under a
// second name, and a file that someone else put there, to read along.
func checkLog(path string, st fs.FileInfo, id *launch.Identity) error {
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is %s, not a regular file", quotePath(path), kindOf(st.Mode()))
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Errorf("%s: its owner cannot be told", quotePath(path))
	case sys.Nlink > 1:
		return &Error{Message: quotePath(path) + " is a file with several names", Cure: "choose another file"}
	case sys.Uid != 0 && int(sys.Uid) != os.Geteuid() && (id == nil || sys.Uid != id.UID):
		return &Error{
			Message: fmt.Sprintf("%s belongs to user %d, who could read the console and change it", quotePath(path), sys.Uid),
			Cure:    "remove it or chown it, or choose another file",
		}
	}
	return nil
}

// listenUnix listens at the path with mode 0600, in place of a socket that a
// former start left there. The mode is set before the bind(2), so there is no
// moment in which others may connect.
func listenUnix(path string) (*os.File, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if errors.Is(err, unix.EINVAL) {
		err = errors.New("the path is too long for a socket: 107 bytes")
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "listen", Path: path, Err: err}, f.Close())
	}
	return f, nil
}

// socketPair makes a connected pair: ours, and a file for the child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, child := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(mine) // a copy of the descriptor
	_ = mine.Close()
	if err != nil {
		return nil, nil, errors.Join(err, child.Close())
	}
	return conn, child, nil
}

// started closes QEMU's end, which QEMU has now, and begins to read.
func (c *console) started() {
	c.closeChild()
	if c.ours == nil {
		return
	}
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		buf := make([]byte, 8<<10)
		for {
			n, err := c.ours.Read(buf)
			c.out.put(buf[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (c *console) closeChild() {
	if c.child != nil {
		_ = c.child.Close()
		c.child = nil
	}
}

// finish returns when the last output is written, or the patience is over. It
// is safe without started.
func (c *console) finish(patience time.Duration) {
	c.closeChild()
	if c.done != nil {
		waitFor(c.done, patience)
	}
	if c.ours != nil {
		_ = c.ours.Close()
	}
	if c.done != nil {
		<-c.done
	}
	if c.out != nil {
		c.out.close(patience)
	}
	if c.socket != "" {
		_ = os.Remove(c.socket)
	}
}
