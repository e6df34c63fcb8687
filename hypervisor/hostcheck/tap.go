// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// Tun is the device that a VMM opens for a tap.
const Tun = "/dev/net/tun"

const (
	netClass = "/sys/class/net"
	iffTap   = 0x2 // IFF_TAP of linux/if_tun.h, as tun_flags shows it
)

// Interfaces looks for each tap. The hypervisor is who supports no other kind yet.
func (c *Checker) Interfaces(hypervisor string) {
	for i, nic := range c.spec.Interfaces {
		field := fmt.Sprintf("interfaces[%d]", i)
		if nic.Type != "tap" {
			c.Fault(field+".type", strconv.Quote(nic.Type)+" is not supported with "+hypervisor+" yet", `use "tap"`)
			continue
		}
		c.tap(field, nic)
	}
}

func (c *Checker) tap(field string, nic vm.Interface) {
	if nic.ID == "" || len(nic.ID) > 15 || strings.ContainsAny(nic.ID, "/ \t\n") || nic.ID == "." || nic.ID == ".." {
		c.Fault(field+".id", strconv.Quote(nic.ID)+" is no interface's name: 1 to 15 characters, no space, no slash", "")
		return
	}
	cure := "ip tuntap add dev " + nic.ID + " mode tap user USER, and ip link set it up"
	if !Exists(filepath.Join(netClass, nic.ID)) {
		c.Fault(field+".id", "there is no interface "+nic.ID+" on this host", cure)
	} else if !isTap(nic.ID) {
		c.Fault(field+".id", nic.ID+" is an interface, but no tap", cure)
	}
	if !Exists(Tun) {
		c.Fault(field, Tun+" is missing", "modprobe tun")
	}
}

// taps refuses those that belong to another user. Root may attach to all.
func (c *Checker) taps(id *launch.Identity) {
	if id == nil || id.UID == 0 {
		return
	}
	for i, nic := range c.spec.Interfaces {
		if nic.Type == "tap" && isTap(nic.ID) && !mayAttach(nic.ID, id) {
			c.Fault(fmt.Sprintf("interfaces[%d].id", i), fmt.Sprintf("the tap %s belongs to another user than %s", nic.ID, UserName(id)),
				fmt.Sprintf("make it anew with: ip tuntap add dev %s mode tap user %s", nic.ID, UserName(id)))
		}
	}
}

func isTap(name string) bool {
	flags, err := strconv.ParseInt(netAttribute(name, "tun_flags"), 0, 64)
	return err == nil && flags&iffTap != 0
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
