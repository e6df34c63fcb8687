// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernel listens on any port of an address of this machine, or skips.
func kernel(t *testing.T, own, cid uint32) net.Listener {
	t.Helper()
	l, err := listenKernel(own, cid, AnyPort)
	var failed *KernelError
	if errors.As(err, &failed) {
		t.Skipf("SKIPPED: this kernel has no vsock for the test (modprobe vsock_loopback): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestKernelListenerEnds(t *testing.T) {
	l := kernel(t, unix.VMADDR_CID_ANY, 3)
	if a := l.Addr().(Addr); a.Port == AnyPort || a.Port == 0 || a.Network() != "vsock" {
		t.Errorf("its address is %v", a)
	}
	served := make(chan struct{})
	go func() { Serve(l, func(net.Conn) {}); close(served) }()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-served
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepting from a closed one: %v", err)
	}
}

func TestKernelPortInUse(t *testing.T) {
	l := kernel(t, unix.VMADDR_CID_ANY, 3)
	_, err := listenKernel(unix.VMADDR_CID_ANY, 3, l.Addr().(Addr).Port)
	var failed *KernelError
	if !errors.As(err, &failed) || failed.Hint() == "" || !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}

func dialKernel(t *testing.T, to net.Addr) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { _ = f.Close() })
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: to.(Addr).Port}); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestKernelConnection(t *testing.T) {
	l := kernel(t, unix.VMADDR_CID_LOCAL, unix.VMADDR_CID_LOCAL)
	guest := dialKernel(t, l.Addr())
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if host.RemoteAddr().(Addr).CID != unix.VMADDR_CID_LOCAL || host.LocalAddr() != l.Addr() {
		t.Errorf("from %v to %v", host.RemoteAddr(), host.LocalAddr())
	}
	if err := host.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline that is over: %v", err)
	}
	if err := host.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(int(guest.Fd()), unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(host); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAnotherGuestIsClosedAtOnce(t *testing.T) {
	l := kernel(t, unix.VMADDR_CID_LOCAL, 42)
	served := make(chan struct{})
	go func() { Serve(l, func(net.Conn) { t.Error("handled another guest") }); close(served) }()
	guest := dialKernel(t, l.Addr())
	if n, err := guest.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("it read %d bytes, %v", n, err)
	}
	_ = l.Close()
	<-served
}

func TestListenKernelIsTheHost(t *testing.T) {
	l, err := ListenKernel(3, AnyPort)
	var failed *KernelError
	if errors.As(err, &failed) && errors.Is(err, unix.EADDRNOTAVAIL) {
		if failed.Hint() == "" {
			t.Error("it does not say what to do")
		}
		t.Skipf("SKIPPED: this kernel is no vsock host (modprobe vhost_vsock): %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a := l.Addr().(Addr); a.CID != unix.VMADDR_CID_HOST || a.Port == AnyPort {
		t.Errorf("it listens on %v", a)
	}
}
