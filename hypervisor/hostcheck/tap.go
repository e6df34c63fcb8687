// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// Tun is the device that a VMM opens for a tap.
const Tun = "/dev/net/tun"

const (
	netClass = "/sys/class/net"

	// IFF_TAP and IFF_MULTI_QUEUE of linux/if_tun.h, as tun_flags shows them.
	iffTap        = 0x2
	iffMultiQueue = 0x100
)

// Interfaces looks for each tap. The hypervisor is who supports no other kind yet.
func (c *Checker) Interfaces(hypervisor string) {
	for i, nic := range c.spec.Interfaces {
		field := fmt.Sprintf("interfaces[%d]", i)
		if nic.Type != "tap" {
			c.Fault(field+".type", strconv.Quote(nic.Type)+" is not supported with "+hypervisor+" yet", `use "tap"`)
			continue
		}
		if len(nic.FDs) > 0 {
			c.descriptors(field, nic)
			continue
		}
		c.tap(field, nic)
	}
}

// descriptors looks whether each is this process's, and a tap.
func (c *Checker) descriptors(field string, nic vm.Interface) {
	if pairs := max(1, nic.Pairs); len(nic.FDs) != pairs {
		c.Fault(field, fmt.Sprintf("has %d descriptors for %d pairs of queues", len(nic.FDs), pairs), "")
	}
	for _, fd := range nic.FDs {
		req, err := unix.NewIfreq("")
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
		}
		if err != nil || req.Uint16()&unix.IFF_TAP == 0 {
			c.Fault(field, fmt.Sprintf("descriptor %d of this process is no tap", fd), "open it in the process that starts this one")
		}
	}
}

func (c *Checker) tap(field string, nic vm.Interface) {
	if nic.ID == "" || len(nic.ID) > 15 || strings.ContainsAny(nic.ID, "/ \t\n") || nic.ID == "." || nic.ID == ".." {
		c.Fault(field+".id", strconv.Quote(nic.ID)+" is no interface's name: 1 to 15 characters, no space, no slash", "")
		return
	}
	if !Exists(Tun) {
		c.Fault(field, Tun+" is missing", "modprobe tun")
	}
	if nic.Made() {
		c.made(field, nic, os.Geteuid() == 0)
		return
	}
	cure := "ip tuntap add dev " + nic.ID + " mode tap user USER, and ip link set it up"
	if !Exists(filepath.Join(netClass, nic.ID)) {
		c.Fault(field+".id", "there is no interface "+nic.ID+" on this host", cure)
	} else if !isTap(nic.ID) {
		c.Fault(field+".id", nic.ID+" is an interface, but no tap", cure)
	} else if multi := tapFlags(nic.ID)&iffMultiQueue != 0; multi != (nic.Pairs > 1) {
		c.queues(field+".id", nic.ID, multi)
	} else if anybodys(nic.ID) {
		c.Warn(field+".id", "the tap "+nic.ID+" is nobody's: every user of this host may attach to it, and be on the VM's network in its place",
			"make it anew with the user that the VM runs as: "+cure)
	}
}

// anybodys says whether a tap has neither an owner nor a group: the kernel lets each
// user open it, who only has to be there before the VM, or beside it with several queues.
func anybodys(name string) bool {
	return netAttribute(name, "owner") == "-1" && netAttribute(name, "group") == "-1"
}

// queues: the kernel lets nobody attach to a tap with one queue as to one with
// several, nor the other way round.
func (c *Checker) queues(field, name string, multi bool) {
	add := "ip tuntap add dev " + name + " mode tap user USER"
	if multi {
		c.Fault(field, "the tap "+name+" is one for several pairs of queues, and the VM has one pair", "make it anew without multi_queue: "+add)
		return
	}
	c.Fault(field, "the tap "+name+" has one pair of queues, and the VM several", "make it anew with: "+add+" multi_queue")
}

// taps refuses those that belong to another user. Root may attach to all.
func (c *Checker) taps(id *launch.Identity) {
	if id == nil || id.UID == 0 {
		return
	}
	for i, nic := range c.spec.Interfaces {
		if nic.Type == "tap" && nic.ID != "" && isTap(nic.ID) && !mayAttach(nic.ID, id) {
			cure := fmt.Sprintf("make it anew with: ip tuntap add dev %s mode tap user %s", nic.ID, UserName(id))
			if nic.Made() {
				cure = c.anew()
			}
			c.Fault(fmt.Sprintf("interfaces[%d].id", i), fmt.Sprintf("the tap %s belongs to another user than %s", nic.ID, UserName(id)), cure)
		}
	}
}

func isTap(name string) bool { return tapFlags(name)&iffTap != 0 }

// tapFlags are those of a tun or tap device, 0 of another.
func tapFlags(name string) int64 {
	flags, err := strconv.ParseInt(netAttribute(name, "tun_flags"), 0, 64)
	if err != nil {
		return 0
	}
	return flags
}

// netAttribute reads one file of /sys/class/net/NAME, without its newline.
func netAttribute(name, attribute string) string {
	b, err := os.ReadFile(filepath.Join(netClass, name, attribute))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mayAttach says whether the kernel lets that user open the tap by its name:
// tun_not_capable() in its drivers/net/tun.c. One without an owner and a group
// is anybody's.
func mayAttach(name string, id *launch.Identity) bool {
	owner, group := netAttribute(name, "owner"), netAttribute(name, "group")
	if owner != "-1" && owner != "" && owner != strconv.FormatUint(uint64(id.UID), 10) {
		return false
	}
	if group == "-1" || group == "" {
		return true
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	return err == nil && (uint32(gid) == id.GID || slices.Contains(id.Groups, uint32(gid)))
}
