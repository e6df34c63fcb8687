// SPDX-License-Identifier: Apache-2.0

package vm

// Interface is one network device.
type Interface struct {
	Type string // "tap"
	ID   string // the tap's name on the host, at most 15 bytes
	MAC  string // empty: the VMM chooses
	// Bridge is the host's bridge that a tap made for the VM is attached to.
	Bridge string
	// Isolated is a tap made for the VM from which it reaches neither the host nor
	// another VM's tap; without a Bridge nothing at all.
	Isolated bool
	// Pairs is how many pairs of queues it has; 0 is one.
	Pairs int
	// FDs are this process's descriptors of an open tap, one for each pair, instead of ID.
	FDs []int
}

// Made reports whether the tap is made for the VM's start and taken away after it.
// Every other is there before, and stays.
func (n Interface) Made() bool { return n.Bridge != "" || n.Isolated }

// Alias is what stands in the ifalias of a tap that was made for a VM (at most 255
// bytes; only CAP_NET_ADMIN can write there): whose it is, and how it is attached.
func (n Interface) Alias(name string) string {
	alias := AliasPrefix(name)
	if n.Bridge != "" {
		alias += " bridge " + n.Bridge
	}
	if n.Isolated {
		alias += " isolated"
	}
	return alias
}

// AliasPrefix begins the alias of each tap that was made for that VM, and of no
// other's: no VM's name has a colon.
func AliasPrefix(name string) string { return "vmcred " + name + ":" }
