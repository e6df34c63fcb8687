// SPDX-License-Identifier: Apache-2.0

// Package network is a VM's taps: made, attached to a bridge, walled off, taken away.
// It knows them by their alias (ifalias), which names the VM, and touches no interface
// that has none of ours. Everything it does needs CAP_NET_ADMIN, and is done in the
// network namespace of the calling thread.
package network

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

// Error says what could not be done for one VM's taps.
type Error struct {
	Message string
	Err     error  // may be nil
	Tip     string // what to do about it
}

// Error returns the message and its cause, without the hint.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *Error) Hint() string {
	if e.Tip == "" && errors.Is(e.Err, unix.EPERM) {
		return "only root may (CAP_NET_ADMIN)"
	}
	return e.Tip
}

// Up makes the taps that are to be made for a VM, which does not run, and removes
// those that it had before. They are the user's with that uid. On error there is
// none of them; what failed is an *[Error].
func Up(name string, uid uint32, nics []vm.Interface) (err error) {
	h, err := open(name)
	if err != nil {
		return err
	}
	defer h.Close()
	made := slices.DeleteFunc(slices.Clone(nics), func(n vm.Interface) bool { return !n.Made() })
	if err := h.look(made); err != nil {
		return err
	}
	if err := h.clear(); err != nil {
		return err
	}
	if len(made) == 0 {
		return nil
	}
	taps := make([]*tap, 0, len(made))
	defer func() {
		for _, t := range taps { // what is not persistent by then is gone
			_ = t.f.Close()
		}
		if err != nil {
			err = errors.Join(err, h.clear())
		}
	}()
	for _, nic := range made {
		t, err := h.make(nic, uid)
		if err != nil {
			return err
		}
		taps = append(taps, t)
	}
	// The wall stands before anything can pass.
	if err := h.wall(made); err != nil {
		return err
	}
	for _, t := range taps {
		if err := h.attach(t); err != nil {
			return err
		}
	}
	for _, t := range taps {
		if err := unix.IoctlSetInt(int(t.f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
			return h.fail(t.nic, "keep", err)
		}
	}
	return nil
}

// Down removes the taps that were made for a VM, whatever its file says by now, and
// their wall. Where there is nothing it does nothing.
func Down(name string) error {
	h, err := open(name)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.clear()
}

// InUse returns the first tap made for the VM that a process has open; "": none.
// A VM that runs has.
func InUse(name string) (string, error) {
	h, err := open(name)
	if err != nil {
		return "", err
	}
	defer h.Close()
	taps, err := h.taps()
	if err != nil {
		return "", err
	}
	for _, l := range taps {
		// A tap's carrier is a process that is attached to it (drivers/net/tun.c).
		if l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return l.Attrs().Name, nil
		}
	}
	return "", nil
}

// host is a connection to the kernel for the taps of one VM.
type host struct {
	*netlink.Handle
	name string
}

func open(name string) (*host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &Error{Message: "the taps of VM " + name, Err: err}
	}
	return &host{Handle: h, name: name}, nil
}

func (h *host) fail(nic vm.Interface, what string, err error) error {
	return &Error{Message: fmt.Sprintf("%s the tap %s", what, nic.ID), Err: err}
}

// look refuses what will not do before anything changes.
func (h *host) look(made []vm.Interface) error {
	for _, nic := range made {
		if nic.Type != "tap" {
			return &Error{Message: fmt.Sprintf("an interface of type %q cannot be made", nic.Type), Tip: `use "tap"`}
		}
		link, err := h.find(nic.ID)
		switch {
		case err != nil:
			return h.fail(nic, "look for", err)
		case link != nil && !h.ours(link):
			return &Error{
				Message: fmt.Sprintf("there is an interface %s already, which was not made for VM %s", nic.ID, h.name),
				Tip:     "give the VM's tap another name (id:), or, to use that one as it is, leave bridge: and isolated: out",
			}
		}
		if nic.Bridge == "" {
			continue
		}
		if _, err := h.bridge(nic.Bridge); err != nil {
			return err
		}
	}
	return nil
}

// find returns the interface of that name, nil if there is none.
func (h *host) find(name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, nil
	}
	return link, err
}

func (h *host) bridge(name string) (netlink.Link, error) {
	link, err := h.find(name)
	switch {
	case err != nil:
		return nil, &Error{Message: "look for the bridge " + name, Err: err}
	case link == nil:
		return nil, &Error{
			Message: "there is no bridge " + name + " on this host",
			Tip:     fmt.Sprintf("make it: ip link add %[1]s type bridge, and ip link set %[1]s up", name),
		}
	case link.Type() != "bridge":
		return nil, &Error{Message: name + " is an interface, but no bridge", Tip: "write the name of a bridge of the kernel's own (ip link show type bridge)"}
	}
	return link, nil
}

// ours reports whether an interface is a tap that was made for this VM.
func (h *host) ours(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Alias, vm.AliasPrefix(h.name))
}

// taps are all that were made for this VM.
func (h *host) taps() ([]netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, &Error{Message: "look for the taps of VM " + h.name, Err: err}
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !h.ours(l) }), nil
}

// clear removes the VM's taps, and their wall after them.
func (h *host) clear() error {
	taps, err := h.taps()
	for _, l := range taps {
		if derr := h.LinkDel(l); derr != nil && !errors.Is(derr, unix.ENODEV) {
			err = errors.Join(err, &Error{Message: "remove the tap " + l.Attrs().Name, Err: derr})
		}
	}
	if err != nil {
		return err // the wall stays as long as something is behind it
	}
	return h.removeWall()
}
