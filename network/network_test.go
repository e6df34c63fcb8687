// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

func up(t *testing.T, name string, nics ...vm.Interface) {
	t.Helper()
	if err := Up(name, owner, nics); err != nil {
		t.Fatalf("%v (%s)", err, hint(err))
	}
}

func hint(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint()
	}
	return ""
}

func on(bridge, id string, isolated bool) vm.Interface {
	return vm.Interface{Type: "tap", ID: id, Bridge: bridge, Isolated: isolated}
}

// TestBridged: two VMs and the host on one bridge reach each other.
func TestBridged(t *testing.T) {
	namespace(t)
	up(t, "a", on("br0", "tap-a", false))
	up(t, "b", on("br0", "tap-b", false))
	a, b, host := guest(t, "tap-a"), guest(t, "tap-b"), program(t, "br0")
	a.say(t, "from a")
	b.heard(t, "from a")
	host.heard(t, "from a")
	a.ask(t, hostIP, "10.9.0.2")
	a.heard(t, "answer to 10.9.0.2")
	l, ok := link(t, "tap-a").(*netlink.Tuntap)
	if !ok || l.Owner != owner || l.NonPersist || l.Alias != "vmcred a: bridge br0" || l.HardwareAddr[0] != 0xfe {
		t.Errorf("%+v", l)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil || len(addrs) > 0 {
		t.Errorf("the host has addresses on it: %v, %v", addrs, err)
	}
	if got := ruleset(t); got != "" {
		t.Errorf("rules for nothing: %s", got)
	}
}

// TestBridgedIsolated: on the same bridge, one that reaches what is behind another
// port, and neither the host nor a tap, isolated or not, ours or not.
func TestBridgedIsolated(t *testing.T) {
	namespace(t)
	up(t, "a", on("br0", "tap-a", false))
	up(t, "c", on("br0", "tap-c", true))
	up(t, "d", on("br0", "tap-d", true))
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap-f"}, Mode: netlink.TUNTAP_MODE_TAP, Queues: 0}))
	must(t, netlink.LinkSetMaster(link(t, "tap-f"), link(t, "br0")), netlink.LinkSetUp(link(t, "tap-f")))
	a, c, d, foreign := guest(t, "tap-a"), guest(t, "tap-c"), guest(t, "tap-d"), guest(t, "tap-f")
	host, far := program(t, "br0"), program(t, "far0")
	c.say(t, "from c")
	c.ask(t, hostIP, "10.9.0.4")
	a.say(t, "from a")
	host.say(t, "from the host")
	far.say(t, "from afar")
	for _, want := range []struct {
		who   *wire
		until string
		heard string
	}{
		{a, "from afar", "from the host, from afar"},
		{c, "from afar", "from afar"},
		{d, "from afar", "from afar"},
		{foreign, "from afar", "from a, from the host, from afar"},
		{host, "from afar", "from a, from afar"},
		{far, "from the host", "from c, from a, from the host"},
	} {
		if got := want.who.heard(t, want.until); got != want.heard {
			t.Errorf("%s heard %s, want %s", want.who.name, got, want.heard)
		}
	}
	testToBridges(t, a, c)
	// Somebody flushes all rules: isolated ports are still apart.
	flush, err := nftables.New()
	must(t, err)
	flush.FlushRuleset()
	must(t, flush.Flush())
	c.say(t, "after the flush")
	far.say(t, "the end")
	if got := d.heard(t, "the end"); got != "the end" {
		t.Errorf("tap-d heard %s", got)
	}
}

// testToBridges: a bridge keeps frames to such addresses (here LLDP's) for the host,
// who gets them from the port itself.
func testToBridges(t *testing.T, free, isolated *wire) {
	t.Helper()
	hostFree, hostIsolated := program(t, free.name), program(t, isolated.name)
	for _, w := range []*wire{free, isolated} {
		w.to = net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}
		w.say(t, "for the host's ears")
		w.to = nil
	}
	hostFree.heard(t, "for the host's ears")
	if hostIsolated.hasHeard(t) {
		t.Errorf("the host hears %s", isolated.name)
	}
}

// TestAlone: a tap that is attached to nothing reaches nothing, and nothing reaches
// it, though the host has an address on it and would answer.
func TestAlone(t *testing.T) {
	namespace(t)
	up(t, "e", on("", "tap-e", true), on("", "tap-x", true))
	address(t, "tap-e", "10.9.2.1/24")
	e, x, host, hostX := guest(t, "tap-e"), guest(t, "tap-x"), program(t, "tap-e"), program(t, "tap-x")
	e.say(t, "walled")
	x.say(t, "walled")
	e.ask(t, "10.9.2.1", "10.9.2.2")
	e.ask(t, hostIP, "10.9.2.3")
	host.trySay(t, "walled host")
	must(t, Down("nobody")) // another VM's end is none of its own
	h, err := open("e")
	must(t, err)
	defer h.Close()
	must(t, h.removeWall())
	e.say(t, "open")
	x.say(t, "open")
	e.ask(t, "10.9.2.1", "10.9.2.4")
	host.say(t, "open host")
	for _, w := range []*wire{host, hostX} {
		if got := w.heard(t, "open"); got != "open" {
			t.Errorf("the host heard %s", got)
		}
	}
	if got := e.heard(t, "open host"); got != "answer to 10.9.2.4, open host" {
		t.Errorf("the guest heard %s", got)
	}
}

// trySay is say where the wall may tell the host.
func (w *wire) trySay(t *testing.T, word string) {
	t.Helper()
	f := append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, w.mac...), etherTest>>8, etherTest&0xff)
	f = append(f, word...)
	if _, err := unix.Write(w.fd, append(f, make([]byte, 60)...)); err != nil {
		t.Logf("the host cannot send either: %v", err)
	}
}

// othersRules are some whose tables have names like ours, and others.
func othersRules(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	for _, family := range []nftables.TableFamily{nftables.TableFamilyBridge, nftables.TableFamilyINet, nftables.TableFamilyNetdev} {
		for _, name := range []string{"filter", "vmcred-", "vmcred-ab"} {
			table := c.AddTable(&nftables.Table{Name: name, Family: family})
			chain := c.AddChain(&nftables.Chain{Name: "x", Table: table})
			drop(c, chain)
		}
	}
	must(t, c.Flush())
}

// TestNothingOfOthersChanges: whatever ours does, in whatever order.
func TestNothingOfOthersChanges(t *testing.T) {
	namespace(t)
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "theirs"}, Mode: netlink.TUNTAP_MODE_TAP}))
	othersRules(t)
	must(t, netlink.LinkSetAlias(link(t, "far0"), "vmcred a: isolated")) // no tap: none of ours
	up(t, "ab", on("br0", "tap-ab", false))                              // a VM whose name begins as the other's
	rules, links := ruleset(t), interfaces(t)
	same := func(what string) {
		t.Helper()
		if got := ruleset(t); got != rules {
			t.Errorf("%s: the rules are\n%s, and were\n%s", what, got, rules)
		}
		if got := interfaces(t); got != links {
			t.Errorf("%s: the interfaces are\n%s, and were\n%s", what, got, links)
		}
	}
	nics := []vm.Interface{on("br0", "tap-1", true), on("", "tap-2", true), on("br0", "tap-3", false), {Type: "tap", ID: "theirs"}}
	must(t, Down("a"))
	same("down before up")
	up(t, "a", nics...)
	if got := interfaces(t); strings.Count(got, `tuntap "vmcred a:`) != 3 {
		t.Error(got)
	}
	up(t, "a", nics...)
	if got := ruleset(t); strings.Count(got, "vmcred-a\n") != 2 {
		t.Error(got)
	}
	up(t, "a", nics[2]) // the file says less
	if got := interfaces(t); strings.Count(got, `tuntap "vmcred a:`) != 1 {
		t.Error(got)
	}
	up(t, "a")
	same("up with nothing to make")
	up(t, "a", nics...)
	must(t, Down("a"), Down("a"))
	same("down twice")
	for i := range 2 { // one table alone
		up(t, "a", nics[i])
		must(t, Down("a"))
		same("down of " + nics[i].ID)
	}
}

// TestRefused: each leaves all as it was.
func TestRefused(t *testing.T) {
	namespace(t)
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "theirs"}, Mode: netlink.TUNTAP_MODE_TAP}))
	up(t, "other", on("br0", "tap-other", false))
	// More than a tap can have: found out when the wall stands already.
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "big0", MTU: 65535}}))
	before, rules := interfaces(t), ruleset(t)
	good := on("", "tap-1", true)
	for _, tc := range []struct {
		nic  vm.Interface
		want string
	}{
		{on("br0", "theirs", false), "there is an interface theirs already, which was not made for VM a"},
		{on("br0", "tap-other", false), "there is an interface tap-other already"},
		{on("br0", "br0", false), "there is an interface br0 already"},
		{on("br1", "tap-2", false), "there is no bridge br1 on this host"},
		{on("out0", "tap-2", false), "out0 is an interface, but no bridge"},
		{on("br0", "tap-2%d", false), "make the tap tap-2%d: the kernel called it tap-20"},
		{on("br0", "tap-1", false), "make the tap tap-1"},
		{on("big0", "tap-2", true), "set the MTU of the tap tap-2"},
		{on("br0", strings.Repeat("n", 16), false), "nnnn"},
		{vm.Interface{Type: "macvtap", ID: "tap-2", Bridge: "br0"}, `an interface of type "macvtap" cannot be made`},
	} {
		err := Up("a", owner, []vm.Interface{good, tc.nic})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %s", tc.nic, err, tc.want)
		}
		if got := interfaces(t); got != before {
			t.Errorf("%+v: the interfaces are\n%s, and were\n%s", tc.nic, got, before)
		}
		if got := ruleset(t); got != rules {
			t.Errorf("%+v: the rules are %s", tc.nic, got)
		}
	}
	// One that appears between the look and the making.
	h, err := open("a")
	must(t, err)
	defer h.Close()
	if _, err := h.make(on("", "theirs", true), owner); err == nil || interfaces(t) != before {
		t.Errorf("somebody's tap is taken: %v, %s", err, interfaces(t))
	}
}

// TestLeftOver: whatever a killed VM or a killed vmcred leaves, the next has what it
// wants, and the end leaves nothing.
func TestLeftOver(t *testing.T) {
	namespace(t)
	before := interfaces(t)
	h, err := open("a")
	must(t, err)
	defer h.Close()
	nic := on("br0", "tap-a", true)
	// Killed half-way: the descriptor is closed, and the wall stands.
	half, err := h.make(nic, owner)
	must(t, err)
	must(t, h.wall([]vm.Interface{nic}), h.attach(half), half.f.Close())
	if got := interfaces(t); got != before {
		t.Errorf("half a tap is left: %s", got)
	}
	up(t, "a", nic)
	if used, err := InUse("a"); used != "" || err != nil {
		t.Errorf("nobody has it: %q, %v", used, err)
	}
	was := link(t, "tap-a").Attrs().Index
	g := guest(t, "tap-a")
	if used, err := InUse("a"); used != "tap-a" || err != nil {
		t.Errorf("a VM has it: %q, %v", used, err)
	}
	if used, err := InUse("b"); used != "" || err != nil {
		t.Errorf("not b: %q, %v", used, err)
	}
	// Killed, and its VMM is not gone yet: it has a tap that is none any more.
	up(t, "a", nic)
	if now := link(t, "tap-a").Attrs().Index; now == was {
		t.Error("the old tap, with its old VMM, is still there")
	}
	if _, err := unix.Write(g.fd, make([]byte, 60)); err == nil {
		t.Error("the old VMM still has its tap")
	}
	must(t, Down("a"))
	if got := interfaces(t); got != before {
		t.Errorf("left: %s", got)
	}
	if got := ruleset(t); got != "" {
		t.Errorf("left: %s", got)
	}
}

// TestMTU: a tap has its bridge's, and so leaves the bridge as it was.
func TestMTU(t *testing.T) {
	namespace(t)
	for _, name := range []string{"far0", "out0", "br0"} {
		must(t, netlink.LinkSetMTU(link(t, name), 9000))
	}
	mac := fmt.Sprint(link(t, "br0").Attrs().HardwareAddr)
	up(t, "a", on("br0", "tap-a", false))
	if got := link(t, "tap-a").Attrs().MTU; got != 9000 {
		t.Errorf("the tap's MTU is %d", got)
	}
	if br := link(t, "br0").Attrs(); br.MTU != 9000 || fmt.Sprint(br.HardwareAddr) != mac {
		t.Errorf("the bridge became %d, %s; its address was %s", br.MTU, br.HardwareAddr, mac)
	}
}
