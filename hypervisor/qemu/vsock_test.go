// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/hypervisor/vhostvsock"
	"github.com/vmcred/vmcred/hypervisor/vsock"
	"github.com/vmcred/vmcred/vm"
)

// withKernel is a driver on a host whose kernel has vsock, as far as a file that
// can be opened is one.
func withKernel(t *testing.T, mode os.FileMode) *Driver {
	t.Helper()
	d := New(Options{})
	d.vsockDevice = filepath.Join(t.TempDir(), "vhost-vsock")
	write(t, d.vsockDevice, nil, mode)
	return d
}

// withDaemon is a driver on a host where only the daemon could do it.
func withDaemon() *Driver {
	d := New(Options{})
	d.vsockDevice = "/nonexistent/vhost-vsock"
	return d
}

func withVsock(kernel string) *vm.Spec {
	s := spec(kernel)
	s.Vsock = &vm.Vsock{CID: 42}
	return s
}

func TestVsockArgv(t *testing.T) {
	info := hypervisor.Info{Path: "/usr/bin/qemu-system-x86_64", Version: "7.2.22", Accel: "tcg"}
	golden(t, "vsock-kernel", withKernel(t, 0o600).Command(withVsock("/vmlinuz"), info, delivery.Plan{}))
	golden(t, "vsock-daemon", withDaemon().Command(withVsock("/vmlinuz"), info, delivery.Plan{}))

	both := full()
	both.Vsock = &vm.Vsock{CID: 42}
	argv := strings.Join(withDaemon().Command(both, info, delivery.Plan{}), " ")
	if strings.Count(argv, "memory-backend-memfd") != 1 || strings.Count(argv, "memory-backend=ram") != 1 {
		t.Errorf("memory that a share's and the vsock's daemon are given: %s", argv)
	}
}

func TestCheckVsock(t *testing.T) {
	kernel := touch(t, t.TempDir(), "kernel")
	t.Setenv("PATH", t.TempDir())
	if got := faults(withKernel(t, 0o600).Check(withVsock(kernel), emulation)); got != "" {
		t.Errorf("with the device: %s", got)
	}
	got := faults(withDaemon().Check(withVsock(kernel), emulation))
	if want := "error: vsock: there is no /nonexistent/vhost-vsock on this host, and vhost-device-vsock is not on PATH [modprobe vhost_vsock; or cargo install vhost-device-vsock]\n"; got != want {
		t.Errorf("with neither: %s", got)
	}
	if got := faults(withDaemon().Check(spec(kernel), emulation)); got != "" {
		t.Errorf("a VM without vsock: %s", got)
	}
}

func TestCheckVsockOfAClosedDevice(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("SKIPPED: root may open each device")
	}
	kernel := touch(t, t.TempDir(), "kernel")
	t.Setenv("PATH", t.TempDir())
	if got := faults(withKernel(t, 0).Check(withVsock(kernel), emulation)); !strings.Contains(got, "this user may not open ") {
		t.Errorf("with a device that is closed: %s", got)
	}
}

// The VMM's user must be able to, or a unit's runner, which is that user, is not.
func TestVsockAccess(t *testing.T) {
	d := withKernel(t, 0o600)
	list := d.devices(withVsock("/kernel"), emulation)
	if len(list) != 1 || list[0].Path != d.vsockDevice || list[0].Field != "vsock" {
		t.Errorf("%+v", list)
	}
	if list := withDaemon().devices(withVsock("/kernel"), emulation); len(list) > 0 {
		t.Errorf("without the device: %+v", list)
	}
}

// TestVsockOfTheKernel: what QEMU inherits is the device. No guest runs.
func TestVsockOfTheKernel(t *testing.T) {
	d, l, out := staged(t, playStays)
	d.vsockDevice = withKernel(t, 0o600).vsockDevice
	l.Spec.Vsock = &vm.Vsock{CID: 42}
	m := begin(t, d, l)
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(open, func(link string) bool { to, _ := os.Readlink(link); return to == d.vsockDevice }) {
		t.Errorf("it has not inherited %s", d.vsockDevice)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if out.log.String() != "" {
		t.Errorf("the log has %q", out.log.String())
	}
	if _, err := os.Stat(filepath.Join(l.RunDir, "vsock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made a directory for sockets: %v", err)
	}
}

// TestKernelPortsWaitForQEMU: the kernel gives a guest's number to the first process
// that asks for it. So nobody is listened to before QEMU has it.
func TestKernelPortsWaitForQEMU(t *testing.T) {
	d, l, _ := staged(t, playStays)
	d.vsockDevice = withKernel(t, 0o600).vsockDevice
	l.Spec.Vsock = &vm.Vsock{CID: 42}
	l.Ports = map[uint32]func(net.Conn){vsock.AnyPort: func(net.Conn) {}}
	k, err := d.openLink(t.Context(), l)
	if err != nil || k.host != nil {
		t.Fatalf("before QEMU runs somebody is listened to: %v", err)
	}
	k.closeChild()
	// This host may have no such kernel: then the start fails here, and not before.
	var none *vsock.KernelError
	if err := k.listen(l); err == nil != (k.host != nil) || err != nil && !errors.As(err, &none) {
		t.Errorf("once QEMU has the number: %v", err)
	}
	if m, err := d.Start(t.Context(), l); err == nil {
		if m.(*machine).vsock.host == nil {
			t.Error("a guest that runs is not listened to")
		}
		_ = m.Kill()
	} else if !errors.As(err, &none) || hintOf(err) == "" {
		t.Errorf("start: %v (hint %q)", err, hintOf(err))
	}
	k.finish()
	if k.host == nil {
		return
	}
	k.host = nil
	if err := k.listen(l); err == nil || k.host != nil {
		t.Errorf("after QEMU's end: %v", err)
	}
}

// TestVsockOfTheKernelIsNone: QEMU knows the options, and what it is given is no
// vhost device. This host may have none to try.
func TestVsockOfTheKernelIsNone(t *testing.T) {
	_, info, sp := installed(t)
	d := withKernel(t, 0o666)
	sp.Vsock = &vm.Vsock{CID: 42}
	l, _ := launchOf(t, d, info, sp, values(t, map[string]string{"A": "alpha"}))
	if _, err := d.Start(t.Context(), l); err == nil || !strings.Contains(err.Error(), "vhost-vsock") || !strings.Contains(err.Error(), "Inappropriate ioctl") {
		t.Errorf("%v", err)
	}
}

func TestTheSameCIDTwice(t *testing.T) {
	e := withHint(&Error{Message: "QEMU did not start (exit status 1): qemu-system-x86_64: -device vhost-vsock-pci: vhost-vsock: unable to set guest cid: Address already in use"})
	if !strings.Contains(e.Hint(), "another VM of this host has that number") {
		t.Errorf("hint %q", e.Hint())
	}
}

// needDaemon skips where the real one is missing.
func needDaemon(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(vhostvsock.Executable); err != nil {
		t.Skipf("SKIPPED: needs %s on PATH (%s)", vhostvsock.Executable, vhostvsock.Install)
	}
}

// daemonOf is the process number of the daemon of that machine.
func daemonOf(t *testing.T, m hypervisor.Machine) int {
	t.Helper()
	d := m.(*machine).vsock.daemon
	if d == nil {
		t.Fatal("it has no daemon")
	}
	return d.PID()
}

// The VM loses its vsock and nothing else.
func TestVsockIsLost(t *testing.T) {
	needDaemon(t)
	_, info, sp := installed(t)
	d := withDaemon()
	sp.Vsock = &vm.Vsock{CID: 42}
	sp.Boot.Cmdline = probe.WordWait
	l, _ := launchOf(t, d, info, sp, values(t, map[string]string{"A": "alpha"}))
	log := &until{text: "goes on without vsock", seen: make(chan struct{})}
	l.Log = log
	ready := &until{text: probe.Last, seen: make(chan struct{})}
	l.Console = ready
	m := begin(t, d, l)
	if err := unix.Kill(daemonOf(t, m), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, seen := range []chan struct{}{log.seen, ready.seen} {
		select {
		case <-seen:
		case <-m.(*machine).Over():
			t.Fatalf("the VM ended: %s", log.all.String())
		}
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, _ := end(t, m); !exit.Clean {
		t.Errorf("exit %+v", exit)
	}
}

// A start that fails late leaves no daemon and no directory.
func TestVsockOfAStartThatFails(t *testing.T) {
	needDaemon(t)
	d, l, _ := staged(t, playDies)
	d.vsockDevice = withDaemon().vsockDevice
	l.Spec.Vsock = &vm.Vsock{CID: 42}
	l.Ports = map[uint32]func(net.Conn){7: func(net.Conn) {}}
	before := descriptorsOpen(t)
	if _, err := d.Start(t.Context(), l); err == nil {
		t.Fatal("it started")
	}
	if after := descriptorsOpen(t); len(after) > len(before) {
		t.Errorf("descriptors left: %v, before %v", after, before)
	}
	if left, err := os.ReadDir(l.RunDir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
