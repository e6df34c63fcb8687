// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// made looks at a tap that is made for the VM's start: by root's run itself, just
// before it looks here, and for everyone else by root beforehand.
func (c *Checker) made(field string, nic vm.Interface, root bool) {
	if nic.Bridge != "" && !Exists(filepath.Join(netClass, nic.Bridge, "bridge")) {
		c.bridge(field+".bridge", nic.Bridge)
		return
	}
	if !Exists(filepath.Join(netClass, nic.ID)) {
		if !root {
			c.Fault(field, "the tap "+nic.ID+" is not there, and only root can make it", fmt.Sprintf(
				"run the VM as root or by its unit, or as root: vmcred net up %s; or leave bridge: and isolated: out, and use a tap of your own", c.spec.Name))
		}
		return
	}
	switch alias := netAttribute(nic.ID, "ifalias"); {
	case alias == nic.Alias(c.spec.Name) && isTap(nic.ID):
	case !strings.HasPrefix(alias, vm.AliasPrefix(c.spec.Name)) || !isTap(nic.ID):
		c.Fault(field+".id", "there is an interface "+nic.ID+" already, which was not made for this VM",
			"give the tap another name, or, to use that one as it is, leave bridge: and isolated: out")
	case !root:
		c.Fault(field, "the tap "+nic.ID+" was made as the VM's file was before", c.anew())
	}
}

func (c *Checker) bridge(field, name string) {
	if Exists(filepath.Join(netClass, name)) {
		c.Fault(field, name+" is an interface, but no bridge", "ip link show type bridge")
		return
	}
	c.Fault(field, "there is no bridge "+name+" on this host", fmt.Sprintf("ip link add %[1]s type bridge, and ip link set %[1]s up", name))
}

// anew is how the VM's taps are made anew.
func (c *Checker) anew() string {
	return fmt.Sprintf("with the VM stopped: systemctl restart vmcred-net@%[1]s.service, or vmcred net up %[1]s", c.spec.Name)
}
