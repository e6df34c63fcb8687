// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/vm"
)

// vnetHeader is the length of virtio-net's header in bytes, with num_buffers
// (virtio 1.2, 5.1.6).
const vnetHeader = 12

// netConfig is NetConfig of cloud-hypervisor's vmm/src/vm_config.rs for a tap that
// comes as a descriptor: by its name the VMM would want to configure it, which
// takes CAP_NET_ADMIN, and would make one that does not exist.
type netConfig struct {
	ID     string `json:"id"`
	MAC    string `json:"mac,omitempty"`
	Queues int    `json:"num_queues"` // one pair
}

// addNet describes interface i for vm.add-net.
func addNet(i int, nic vm.Interface) ([]byte, error) {
	return json.Marshal(netConfig{ID: fmt.Sprintf("net%d", i), MAC: nic.MAC, Queues: 2})
}

// openTap attaches to a tap that is there.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(hostcheck.Tun, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &hypervisor.Error{Message: "the tap " + name, Err: &os.PathError{Op: "open", Path: hostcheck.Tun, Err: err}}
	}
	if err := attach(fd, name); err != nil {
		return nil, errors.Join(&hypervisor.Error{Message: "the tap " + name, Err: err, Cure: "is another VM attached to it, or is it another user's?"}, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func attach(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	// For root the kernel makes a tap that is not there. One that was is a
	// persistent one, or somebody else has it, which was an error above.
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return os.NewSyscallError("TUNGETIFF", err)
	}
	if req.Uint16()&unix.IFF_PERSIST == 0 {
		return errors.New("there is no such interface")
	}
	return os.NewSyscallError("TUNSETVNETHDRSZ", unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader))
}
