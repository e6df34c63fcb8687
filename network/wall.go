// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

// The wall is nftables' (nft(8)). A VM has at most one table in each family, of its
// own name, which nobody else's rules are in:
//
//	netdev  a tap that is attached to nothing: all that goes in or out of it is dropped;
//	        one on a bridge: what it says to bridges as such, which the host's would hear
//	bridge  one on a bridge: between it and the host, and between it and other taps
//
// A packet that one table drops is gone, whatever another accepts.

const (
	// NFT_META_IIFKIND and NFT_META_OIFKIND of linux/netfilter/nf_tables.h.
	metaInKind  expr.MetaKey = 26
	metaOutKind expr.MetaKey = 27
	// tunKind is the kind of each tun and tap device, whoever made it.
	tunKind = "tun"
)

func (h *host) table(family nftables.TableFamily) *nftables.Table {
	return &nftables.Table{Name: "vmcred-" + h.name, Family: family}
}

// wall puts the rules for those that are isolated, all at once.
func (h *host) wall(nics []vm.Interface) error {
	var alone, bridged []string
	for _, nic := range nics {
		switch {
		case nic.Isolated && nic.Bridge == "":
			alone = append(alone, nic.ID)
		case nic.Isolated:
			bridged = append(bridged, nic.ID)
		}
	}
	if len(alone)+len(bridged) == 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return h.wallError("put up", err)
	}
	if len(alone) > 0 {
		h.shut(c, alone)
	}
	if len(bridged) > 0 {
		h.fence(c, bridged)
	}
	if err := c.Flush(); err != nil {
		return h.wallError("put up", err)
	}
	return nil
}

func (h *host) wallError(what string, err error) error {
	e := &Error{Message: what + " the wall around the taps of VM " + h.name, Err: err}
	if unsupported(err) {
		e.Tip = "the kernel lacks nftables for bridges or devices: CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_NETDEV, CONFIG_NETFILTER_EGRESS (Linux 5.16)"
	}
	return e
}

// unsupported: the errors of a kernel that has no nftables, or not this of it.
func unsupported(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL}, func(e error) bool { return errors.Is(err, e) })
}

// shut lets nothing through the taps.
func (h *host) shut(c *nftables.Conn, taps []string) {
	t := c.AddTable(h.table(nftables.TableFamilyNetdev))
	for i, tap := range taps {
		for way, hook := range map[string]*nftables.ChainHook{"from": nftables.ChainHookIngress, "to": nftables.ChainHookEgress} {
			device(c, t, fmt.Sprintf("%s-%d", way, i), hook, tap, nftables.ChainPolicyDrop)
		}
	}
}

// device adds a chain for one interface.
func device(c *nftables.Conn, t *nftables.Table, name string, hook *nftables.ChainHook, tap string, policy nftables.ChainPolicy) *nftables.Chain {
	return c.AddChain(&nftables.Chain{
		Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy, Device: tap,
	})
}

// fence lets each tap talk to what else is on its bridge, but not to the host, nor
// to another tap.
func (h *host) fence(c *nftables.Conn, taps []string) {
	t := c.AddTable(h.table(nftables.TableFamilyBridge))
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{
			Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
	}
	bare := c.AddTable(h.table(nftables.TableFamilyNetdev))
	in, out, between := chain("input", nftables.ChainHookInput), chain("output", nftables.ChainHookOutput), chain("forward", nftables.ChainHookForward)
	for i, tap := range taps {
		drop(c, device(c, bare, fmt.Sprintf("local-%d", i), nftables.ChainHookIngress, tap, nftables.ChainPolicyAccept), toBridges())
		from, to := is(expr.MetaKeyIIFNAME, tap), is(expr.MetaKeyOIFNAME, tap)
		drop(c, in, from)
		drop(c, out, to)
		drop(c, between, from, is(metaOutKind, tunKind))
		drop(c, between, to, is(metaInKind, tunKind))
	}
}

// drop adds a rule that drops what all conditions are true of.
func drop(c *nftables.Conn, chain *nftables.Chain, conditions ...[]expr.Any) {
	c.AddRule(&nftables.Rule{
		Table: chain.Table, Chain: chain,
		Exprs: append(slices.Concat(conditions...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}),
	})
}

// is compares one of a packet's words, which the kernel keeps in 16 bytes (IFNAMSIZ).
func is(key expr.MetaKey, word string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, word)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// toBridges is true of a frame to one of the addresses that a bridge does not forward,
// 01:80:c2:00:00:00 to 0f (IEEE 802.1Q, table 8-1). Spanning tree's and LLDP's it hands
// to the host past the hooks of its own family (br_handle_frame() in net/bridge).
func toBridges() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 6, Mask: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, Xor: make([]byte, 6)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x01, 0x80, 0xc2, 0, 0, 0}},
	}
}

// removeWall removes the VM's tables. A kernel without nftables has none.
func (h *host) removeWall() error {
	c, err := nftables.New()
	if err != nil {
		return h.wallError("look for", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyNetdev, nftables.TableFamilyBridge} {
		tables, err := c.ListTablesOfFamily(family)
		if unsupported(err) {
			continue
		}
		if err != nil {
			return h.wallError("look for", err)
		}
		own := h.table(family)
		if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == own.Name && t.Family == family }) {
			c.DelTable(own)
		}
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return h.wallError("take down", err)
	}
	return nil
}
