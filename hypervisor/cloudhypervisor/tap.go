// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"context"
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
// comes as descriptors, one for each pair of queues: by its name the VMM would want
// to configure it, which takes CAP_NET_ADMIN, and would make one that does not exist.
type netConfig struct {
	MAC    string `json:"mac,omitempty"`
	Queues int    `json:"num_queues"` // two for each pair
}

// addNet describes an interface for vm.add-net.
func addNet(nic vm.Interface) ([]byte, error) {
	return json.Marshal(netConfig{MAC: nic.MAC, Queues: 2 * max(1, nic.Pairs)})
}

// openTaps opens every interface's tap, in order.
func (s *starter) openTaps() error {
	for _, nic := range s.l.Spec.Interfaces {
		var queues []*os.File
		s.taps = append(s.taps, queues)
		for i := range max(1, nic.Pairs) {
			f, err := openQueue(nic, i)
			if err != nil {
				return err
			}
			s.taps[len(s.taps)-1] = append(s.taps[len(s.taps)-1], f)
		}
	}
	return nil
}

// addTaps gives the VM its taps, which this process has opened.
func (s *starter) addTaps(ctx context.Context) error {
	for i, nic := range s.l.Spec.Interfaces {
		body, err := addNet(nic)
		if err != nil {
			return err
		}
		if err := s.machine.client.PutFiles(ctx, "vm.add-net", body, s.taps[i]...); err != nil {
			return err
		}
	}
	s.closeTaps()
	return nil
}

func (s *starter) closeTaps() {
	for _, queues := range s.taps {
		for _, f := range queues {
			_ = f.Close()
		}
	}
	s.taps = nil
}

// openQueue opens one pair of an interface's queues.
func openQueue(nic vm.Interface, i int) (*os.File, error) {
	if len(nic.FDs) == 0 {
		return openTap(nic.ID, nic.Pairs > 1)
	}
	// A duplicate: the guest's next start needs the descriptor, too.
	fd, err := unix.FcntlInt(uintptr(nic.FDs[i]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &hypervisor.Error{Message: fmt.Sprintf("descriptor %d of a tap", nic.FDs[i]), Err: os.NewSyscallError("dup", err)}
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("tap of descriptor %d", nic.FDs[i])), nil
}

// openTap attaches to a tap that is there, or to one more queue of it.
func openTap(name string, multiQueue bool) (*os.File, error) {
	fd, err := unix.Open(hostcheck.Tun, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &hypervisor.Error{Message: "the tap " + name, Err: &os.PathError{Op: "open", Path: hostcheck.Tun, Err: err}}
	}
	if err := attach(fd, name, multiQueue); err != nil {
		return nil, errors.Join(&hypervisor.Error{Message: "the tap " + name, Err: err, Cure: "is another VM attached to it, or is it another user's?"}, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func attach(fd int, name string, multiQueue bool) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
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
