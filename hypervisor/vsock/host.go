// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/vmcred/vmcred/internal/launch"
)

// socketName is the VMM's own socket.
const socketName = "vsock"

// Ports are the ports of the host that a guest may connect to, each with who
// answers.
type Ports map[uint32]func(net.Conn)

// Host is the host's end for one VM. A nil one has nothing.
type Host struct {
	dir       *Dir // nil with the kernel's vsock
	listeners []net.Listener
	serving   sync.WaitGroup
}

// Open makes the directory of a VM's sockets in runDir and listens on the ports,
// all before the VMM starts; id is the VMM's user, nil our own.
func Open(runDir string, id *launch.Identity, ports Ports) (*Host, error) {
	dir, err := MakeDir(runDir, id)
	if err != nil {
		return nil, err
	}
	h := &Host{dir: dir}
	return h.listen(ports, func(port uint32) (net.Listener, error) { return Listen(dir, socketName, port, id) })
}

// OpenKernel listens on the ports of the host's kernel, for the guest with this CID.
func OpenKernel(cid uint32, ports Ports) (*Host, error) {
	return (&Host{}).listen(ports, func(port uint32) (net.Listener, error) { return ListenKernel(cid, port) })
}

func (h *Host) listen(ports Ports, on func(uint32) (net.Listener, error)) (*Host, error) {
	for port, handle := range ports {
		l, err := on(port)
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		h.listeners = append(h.listeners, l)
		h.serving.Go(func() { Serve(l, handle) })
	}
	return h, nil
}

// File is the directory for the VMM, to be donated as a descriptor; nil if it needs
// none. It stays the Host's.
func (h *Host) File() *os.File {
	if h == nil || h.dir == nil {
		return nil
	}
	return h.dir.File()
}

// Socket is the path of the VMM's own socket, in a VMM with the directory as
// descriptor fd.
func Socket(fd int) string { return InDir(fd, socketName) }

// InDir is the path of a file in the directory, in a VMM that has it as descriptor fd.
func InDir(fd int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, name) }

// Path is where a socket of that name is, or would be, in this VM's runtime directory.
func Path(runDir, name string) string { return filepath.Join(runDir, dirName, name) }

// Close ends it all: the VMM is gone. It waits for who is answering.
func (h *Host) Close() error {
	if h == nil {
		return nil
	}
	var errs []error
	for _, l := range h.listeners {
		errs = append(errs, l.Close())
	}
	h.listeners = nil
	h.serving.Wait()
	if h.dir != nil {
		errs = append(errs, h.dir.Close())
	}
	return errors.Join(errs...)
}
