// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// AnyPort lets the kernel choose a port. All VMs of a host share its ports.
const AnyPort = uint32(unix.VMADDR_PORT_ANY)

// Addr is an address of AF_VSOCK.
type Addr struct{ CID, Port uint32 }

// Network implements net.Addr.
func (Addr) Network() string { return "vsock" }

// String is "CID:PORT".
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// ListenKernel listens on a port of the host for a VM with /dev/vhost-vsock. Only
// connections from the guest with this CID are accepted; others are closed at
// once. With [AnyPort] the listener's Addr has the port.
func ListenKernel(cid, port uint32) (net.Listener, error) {
	return listenKernel(unix.VMADDR_CID_HOST, cid, port)
}

func listenKernel(own, cid, port uint32) (net.Listener, error) {
	at := Addr{own, port}
	f, err := bindKernel(at)
	if err != nil {
		return nil, &KernelError{Addr: at, Err: err}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, &KernelError{Addr: at, Err: err}
	}
	// Not by Fd, which would make it block.
	_ = raw.Control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			at = addr(sa)
		}
	})
	return &kernelListener{file: f, raw: raw, addr: at, cid: cid}, nil
}

// KernelError says why the kernel's vsock cannot be used.
type KernelError struct {
	Addr Addr
	Err  error
}

// Error implements error.
func (e *KernelError) Error() string {
	return fmt.Sprintf("listening on vsock %s: %v", e.Addr, e.Err)
}

// Unwrap returns the cause.
func (e *KernelError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *KernelError) Hint() string {
	switch {
	case errors.Is(e.Err, unix.EADDRNOTAVAIL), errors.Is(e.Err, unix.EAFNOSUPPORT), errors.Is(e.Err, unix.ENODEV):
		return "load the kernel's host side of vsock: modprobe vhost_vsock"
	case errors.Is(e.Err, unix.EADDRINUSE):
		return "another program of this host listens on that port; all VMs share them"
	case errors.Is(e.Err, unix.EACCES):
		return "ports below 1024 are for root"
	}
	return ""
}

func bindKernel(at Addr) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: at.CID, Port: at.Port}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// The file knows that the descriptor does not block, and waits by epoll.
	return os.NewFile(uintptr(fd), "vsock"), nil
}

func addr(sa unix.Sockaddr) Addr {
	if vm, ok := sa.(*unix.SockaddrVM); ok {
		return Addr{vm.CID, vm.Port}
	}
	return Addr{}
}

type kernelListener struct {
	file *os.File
	raw  syscall.RawConn
	addr Addr
	cid  uint32
}

// Accept waits for the next connection of the guest.
func (l *kernelListener) Accept() (net.Conn, error) {
	for {
		fd, peer, err := l.accept()
		if err != nil {
			return nil, err
		}
		c := &kernelConn{File: os.NewFile(uintptr(fd), "vsock"), local: l.addr, remote: peer}
		if peer.CID == l.cid {
			return c, nil
		}
		_ = c.Close()
	}
}

func (l *kernelListener) accept() (fd int, peer Addr, err error) {
	waited := l.raw.Read(func(listening uintptr) bool {
		var sa unix.Sockaddr
		fd, sa, err = unix.Accept4(int(listening), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		peer = addr(sa)
		return !errors.Is(err, unix.EAGAIN)
	})
	if waited != nil { // without a deadline only Close ends the waiting
		return -1, peer, net.ErrClosed
	}
	return fd, peer, err
}

// Close stops listening.
func (l *kernelListener) Close() error { return l.file.Close() }

// Addr is where it listens.
func (l *kernelListener) Addr() net.Addr { return l.addr }

// kernelConn is a connection; the file has Read, Write, Close and deadlines.
type kernelConn struct {
	*os.File
	local, remote Addr
}

// LocalAddr is the host's end.
func (c *kernelConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the guest's end.
func (c *kernelConn) RemoteAddr() net.Addr { return c.remote }
