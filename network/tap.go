// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

const (
	tunDevice = "/dev/net/tun"

	// genModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
	genModeNone = 1
	// highMAC is the first byte of a tap's own address: local, and higher than that
	// of any card, as a bridge takes the lowest address of its ports for its own.
	highMAC = 0xfe
)

// tap is one in the making: it vanishes with f until it is persistent.
type tap struct {
	nic  vm.Interface
	f    *os.File
	link netlink.Link
}

// make makes a tap that is down, and ours from the start: one that a crash leaves
// half made goes by itself.
func (h *host) make(nic vm.Interface, uid uint32) (*tap, error) {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Error{Message: "make the tap " + nic.ID, Err: err, Tip: "modprobe tun"}
	}
	if err != nil {
		return nil, h.fail(nic, "make", err)
	}
	t := &tap{nic: nic, f: f}
	if err = t.create(uid); err == nil {
		err = h.mark(t) // only what is new: that name may be somebody's
	}
	if err != nil {
		return nil, errors.Join(h.fail(nic, "make", err), f.Close())
	}
	return t, nil
}

func (t *tap) create(uid uint32) error {
	req, err := unix.NewIfreq(t.nic.ID)
	if err != nil {
		return err
	}
	// Exclusive: not somebody's that appeared just now.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	fd := int(t.f.Fd())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	if req.Name() != t.nic.ID {
		return fmt.Errorf("the kernel called it %s", req.Name())
	}
	return os.NewSyscallError("TUNSETOWNER", unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)))
}

// mark says whose it is, and gives it addresses that do no harm: none of IPv6, with
// which the host would talk to its guest, and a high one on the wire.
func (h *host) mark(t *tap) error {
	link, err := h.LinkByName(t.nic.ID)
	if err != nil {
		return err
	}
	t.link = link
	mac := slices.Clone(link.Attrs().HardwareAddr)
	if len(mac) != 6 {
		return fmt.Errorf("its address %s is not one of Ethernet", net.HardwareAddr(mac))
	}
	mac[0] = highMAC
	err = h.LinkSetIP6AddrGenMode(link, genModeNone)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // a host without IPv6
	}
	return errors.Join(err, h.LinkSetHardwareAddr(link, mac), h.LinkSetAlias(link, t.nic.Alias(h.name)))
}

// attach connects the tap to what the VM's file says and sets it up.
func (h *host) attach(t *tap) error {
	if t.nic.Bridge != "" {
		br, err := h.bridge(t.nic.Bridge)
		if err != nil {
			return err
		}
		// A bridge takes the least MTU of its ports for its own.
		if mtu := br.Attrs().MTU; mtu != t.link.Attrs().MTU {
			if err := h.LinkSetMTU(t.link, mtu); err != nil {
				return h.fail(t.nic, "set the MTU of", err)
			}
		}
		if err := h.LinkSetMaster(t.link, br); err != nil {
			return h.fail(t.nic, "attach to "+t.nic.Bridge, err)
		}
		if t.nic.Isolated { // as the wall does, and nobody's `nft flush ruleset` takes it away
			if err := h.LinkSetIsolated(t.link, true); err != nil {
				return h.fail(t.nic, "isolate", err)
			}
		}
	}
	if err := h.LinkSetUp(t.link); err != nil {
		return h.fail(t.nic, "set up", err)
	}
	return nil
}
