// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	etherTest = 0x88b5 // for local experiments (IEEE 802)
	hostIP    = "10.9.0.1"
	owner     = 65531
)

// namespace gives the test a network of its own, which its thread takes along. It
// has a bridge br0 with the host's address, and out0, a port of that bridge with far0
// at its other end.
func namespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a network namespace needs root")
	}
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skipf("SKIPPED: taps need %s: %v", tunDevice, err)
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("SKIPPED: cannot make a network namespace: %v", err)
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "far0"}
	must(t, netlink.LinkAdd(br), netlink.LinkAdd(veth), netlink.LinkSetMaster(veth, br))
	must(t, netlink.LinkSetARPOff(link(t, "far0"))) // or the host would answer there, too
	address(t, "br0", hostIP+"/24")
	for _, name := range []string{"lo", "br0", "out0", "far0"} {
		must(t, netlink.LinkSetUp(link(t, name)))
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func address(t *testing.T, name, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	must(t, netlink.AddrAdd(link(t, name), a))
}

// wire is one end of a network: a VM's, which has the tap's descriptor, or what a
// program on the host gets of an interface.
type wire struct {
	name string
	fd   int
	mac  net.HardwareAddr
	to   net.HardwareAddr // empty: all
}

// guest attaches to a tap, as a VMM does.
func guest(t *testing.T, name string) *wire {
	t.Helper()
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	req, err := unix.NewIfreq(name)
	must(t, err)
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	return &wire{name: name, fd: fd, mac: net.HardwareAddr{2, 0, 0, 0, 0, name[len(name)-1]}}
}

// program has the frames of this test's kind that an interface hands up.
func program(t *testing.T, name string) *wire {
	t.Helper()
	proto := binary.BigEndian.Uint16([]byte{etherTest & 0xff, etherTest >> 8}) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	l := link(t, name)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: l.Attrs().Index}))
	return &wire{name: name, fd: fd, mac: l.Attrs().HardwareAddr}
}

func (w *wire) write(t *testing.T, etherType uint16, payload []byte) {
	t.Helper()
	f := slices.Clone(w.to)
	if len(f) == 0 {
		f = bytes.Repeat([]byte{0xff}, 6)
	}
	f = append(f, w.mac...)
	f = binary.BigEndian.AppendUint16(f, etherType)
	f = append(f, payload...)
	f = append(f, make([]byte, max(0, 60-len(f)))...)
	if _, err := unix.Write(w.fd, f); err != nil {
		t.Fatalf("write to %s: %v", w.name, err)
	}
}

// say sends a word to all.
func (w *wire) say(t *testing.T, word string) { t.Helper(); w.write(t, etherTest, []byte(word)) }

// ask asks who has an address, as one who has the other.
func (w *wire) ask(t *testing.T, who, from string) {
	t.Helper()
	p := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	p = append(p, w.mac...)
	p = append(p, net.ParseIP(from).To4()...)
	p = append(p, make([]byte, 6)...)
	w.write(t, unix.ETH_P_ARP, append(p, net.ParseIP(who).To4()...))
}

// heard reads until that word comes, and returns all that came: words, and
// "answer to ADDRESS". Frames come in the order in which they were sent, as the
// kernel hands each on before write(2) returns.
func (w *wire) heard(t *testing.T, until string) string {
	t.Helper()
	var all []string
	for {
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 20_000); n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("%s: waiting for %q: %v; it heard %q", w.name, until, err, all)
		}
		buf := make([]byte, 2048)
		n, err := unix.Read(w.fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		word := read(buf[:n])
		if word == "" {
			continue
		}
		all = append(all, word)
		if word == until {
			return strings.Join(all, ", ")
		}
	}
}

// hasHeard reports whether something is there to be read. What was sent before is.
func (w *wire) hasHeard(t *testing.T) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, 0)
	must(t, err)
	return n > 0
}

// read is what a frame says; "" for the host's own talk.
func read(f []byte) string {
	if len(f) < 42 {
		return ""
	}
	switch p := f[14:]; binary.BigEndian.Uint16(f[12:]) {
	case etherTest:
		return strings.TrimRight(string(p), "\x00")
	case unix.ETH_P_ARP:
		if p[7] == 2 {
			return "answer to " + net.IP(p[24:28]).String()
		}
	}
	return ""
}

// ruleset is all of nftables that there is.
func ruleset(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	var b strings.Builder
	for _, table := range tables {
		fmt.Fprintf(&b, "table %d %s\n", table.Family, table.Name)
		chains, err := c.ListChainsOfTableFamily(table.Family)
		must(t, err)
		for _, chain := range chains {
			if chain.Table.Name != table.Name {
				continue
			}
			rules, err := c.GetRules(table, chain)
			must(t, err)
			fmt.Fprintf(&b, " chain %s, %d rules\n", chain.Name, len(rules))
		}
	}
	return b.String()
}

// interfaces are all that there are, with what could be changed of them.
func interfaces(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&b, "%d %s %s %q master %d mtu %d %s %s\n", a.Index, a.Name, l.Type(), a.Alias, a.MasterIndex, a.MTU, a.Flags&net.FlagUp, a.HardwareAddr)
	}
	return b.String()
}
