// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

const (
	netClass = "/sys/class/net"
	tun      = "/dev/net/tun"
	iffTap   = 0x2 // IFF_TAP of linux/if_tun.h, as tun_flags shows it
)

func (c *checker) nic(field string, nic vm.Interface) {
	if nic.Type != "tap" {
		c.fault(field+".type", strconv.Quote(nic.Type)+" is not supported with qemu yet", `use "tap"`)
		return
	}
	if nic.ID == "" || len(nic.ID) > 15 || strings.ContainsAny(nic.ID, "/ \t\n") || nic.ID == "." || nic.ID == ".." {
		c.fault(field+".id", strconv.Quote(nic.ID)+" is no interface's name: 1 to 15 characters, no space, no slash", "")
		return
	}
	cure := "ip tuntap add dev " + nic.ID + " mode tap user USER, and ip link set it up"
	if !exists(filepath.Join(netClass, nic.ID)) {
		c.fault(field+".id", "there is no interface "+nic.ID+" on this host", cure)
	} else if !isTap(nic.ID) {
		c.fault(field+".id", nic.ID+" is an interface, but no tap", cure)
	}
	if !exists(tun) {
		c.fault(field, tun+" is missing", "modprobe tun")
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
