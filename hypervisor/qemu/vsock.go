// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/vhostvsock"
	"github.com/vmcred/vmcred/hypervisor/vsock"
	"github.com/vmcred/vmcred/vm"
)

// vsockDevice is the host's kernel's: with it QEMU needs no daemon.
const vsockDevice = "/dev/vhost-vsock"

// vsockWay is how a VM's vsock device works on this host.
type vsockWay int

const (
	noVsock  vsockWay = iota // the VM has none
	byKernel                 // vhost-vsock: connections arrive at the host's own AF_VSOCK sockets
	byDaemon                 // vhost-user: a process of ours, which is given the guest's memory
)

// vsockWay prefers the kernel, if this process may open its device: it is who does.
func (d *Driver) vsockWay(spec *vm.Spec) vsockWay {
	switch {
	case spec.Vsock == nil:
		return noVsock
	case unix.Faccessat(unix.AT_FDCWD, d.vsockDevice, unix.R_OK|unix.W_OK, unix.AT_EACCESS) == nil:
		return byKernel
	}
	return byDaemon
}

// checkVsock looks for the daemon, and asks its version, only if the VM needs it.
func (d *Driver) checkVsock(c *hostcheck.Checker, spec *vm.Spec) {
	if spec.Vsock != nil && spec.Vsock.Socket != "" {
		c.Fault("vsock", "a path for its socket is not supported with qemu", "leave it out: it is in the VM's runtime directory")
		return
	}
	if d.vsockWay(spec) != byDaemon {
		return
	}
	_, err := vhostvsock.Probe(context.Background(), d.vhost())
	if err == nil {
		return
	}
	why, cure := "there is no "+d.vsockDevice+" on this host", "modprobe vhost_vsock"
	if hostcheck.Exists(d.vsockDevice) {
		why, cure = "this user may not open "+d.vsockDevice, vsockCure
	}
	if hint := (&Error{Err: err}).Hint(); hint != "" {
		cure += "; or " + hint
	}
	c.Fault("vsock", why+", and "+err.Error(), cure)
}

// vsockCure is how udev has it.
const vsockCure = "add the user to the group kvm, whose it is"

func (d *Driver) vhost() vhostvsock.Options { return vhostvsock.Options{CacheDir: d.o.CacheDir} }

// link is the VM's vsock on this side: who answers the guest, and what carries it.
type link struct {
	daemon *vhostvsock.Server
	way    vsockWay
	child  *os.File // QEMU's end: the kernel's device, or a connection to the daemon

	mu   sync.Mutex // guards what follows
	host *vsock.Host
	over bool // QEMU is gone
}

// openLink makes the vsock of a VM that has one. On an error nothing is left.
func (d *Driver) openLink(ctx context.Context, l hypervisor.Launch) (*link, error) {
	var err error
	k := &link{way: d.vsockWay(l.Spec)}
	switch k.way {
	case noVsock:
		return k, nil
	case byKernel:
		err = k.openKernel(d.vsockDevice)
	case byDaemon:
		err = k.openDaemon(ctx, d.vhost(), l)
	}
	if err != nil {
		k.closeChild()
		k.finish()
		return nil, &Error{Message: "the VM's vsock", Err: err}
	}
	return k, nil
}

func (k *link) openKernel(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: device, Err: err}
	}
	k.child = os.NewFile(uintptr(fd), device)
	return nil
}

// listen answers the guest on the kernel's ports. QEMU has the number by now, which
// the kernel gives to one process alone: before, whoever took it was heard as the guest.
func (k *link) listen(l hypervisor.Launch) error {
	if k.way != byKernel {
		return nil
	}
	host, err := vsock.OpenKernel(l.Spec.Vsock.CID, l.Ports)
	if err != nil {
		return withHint(&Error{Message: "the VM's vsock", Err: err})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		return errors.Join(errors.New("QEMU is gone"), host.Close())
	}
	k.host = host
	return nil
}

func (k *link) openDaemon(ctx context.Context, o vhostvsock.Options, l hypervisor.Launch) error {
	daemon, err := vhostvsock.Probe(ctx, o)
	if err != nil {
		return err
	}
	if k.host, err = vsock.Open(l.RunDir, l.Identity, l.Ports); err != nil {
		return err
	}
	k.daemon, err = vhostvsock.Start(vhostvsock.StartOptions{
		Daemon: daemon, CID: l.Spec.Vsock.CID, Dir: k.host.File(), Socket: vsock.Socket,
		Identity: l.Identity, Log: l.Log,
	})
	if err != nil {
		return err
	}
	k.child, err = k.daemon.Dial(ctx)
	return err
}

func (k *link) closeChild() {
	if k != nil && k.child != nil {
		_ = k.child.Close()
		k.child = nil
	}
}

// finish ends it: QEMU is gone.
func (k *link) finish() {
	if k == nil {
		return
	}
	k.daemon.Finish()
	k.mu.Lock()
	host := k.host
	k.over = true
	k.mu.Unlock()
	_ = host.Close()
}

// vsock: the kernel's device needs the CID from QEMU, the daemon has it.
func (a *args) vsock(v *vm.Vsock, fd string, way vsockWay) {
	switch way {
	case noVsock:
	case byKernel:
		a.add("-device", "vhost-vsock-pci,guest-cid="+strconv.FormatUint(uint64(v.CID), 10)+",vhostfd="+fd)
	case byDaemon:
		a.add("-chardev", "socket,id=vsock,fd="+fd)
		a.add("-device", "vhost-user-vsock-pci,chardev=vsock")
	}
}
