// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"strings"
	"time"
	"unicode"

	"github.com/vmcred/vmcred/vm"
)

// MaxName is how long a VM's name may be: "vmcred-NAME" must stay a user name
// of at most 31 bytes.
const MaxName = 23

const nameLetters = "abcdefghijklmnopqrstuvwxyz0123456789-"

// CheckName tells why name cannot be a VM's name; nil if it can.
func CheckName(name string) error {
	switch {
	case name == "" || len(name) > MaxName || strings.Trim(name, nameLetters) != "":
		return fmt.Errorf("%q cannot be a VM's name: it must be 1 to %d characters of a-z, 0-9 and \"-\"", name, MaxName)
	case name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("%q cannot be a VM's name: it must not begin or end with \"-\"", name)
	}
	return nil
}

// unitForm is a service's name as systemd has it (systemd.unit(5)).
var unitForm = pattern(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]+)?\.service$`)

// validate checks what the types cannot say.
func (d *decoder) validate() {
	s := d.spec
	d.need("hypervisor", s.Hypervisor, "write hypervisor: qemu")
	d.validateBoot()
	d.validateMachine()
	d.validateTimeouts()
	d.validateUnit()
	d.validateDisks()
	d.validateInterfaces()
	d.validateShares()
	if s.Vsock != nil && !d.has("vsock.cid") {
		d.fail("vsock.cid", "write vsock: {cid: 3}; each VM of a host needs a number of its own", "this key is missing")
	}
	if s.Notify == vm.NotifyGuest {
		d.validateNotify()
	}
	d.validateNames()
	d.validateOEMStrings()
	d.validateImport()
}

func (d *decoder) need(path, value, hint string) {
	if value != "" {
		return
	}
	if d.has(path) {
		d.fail(path, hint, "this must not be empty")
		return
	}
	d.fail(path, hint, "this key is missing")
}

func (d *decoder) validateMachine() {
	s := d.spec
	switch m := s.Memory; {
	case m < minMemory && d.has("memory"):
		hint := "write it in MiB: 512MiB"
		if 0 < m && m < 64<<10 { // nobody means so few bytes
			hint = fmt.Sprintf("did you mean %dMiB?", m)
		}
		d.fail("memory", hint, "%d bytes is too little for any VM", m)
	case m > maxMemory:
		d.fail("memory", "", "%d bytes is more than any VMM gives a VM", m)
	case m%4096 != 0:
		d.fail("memory", "write it in MiB", "%d bytes is not a multiple of the page size, 4096", m)
	}
	for _, h := range Hypervisors() {
		if d.has(h) && s.Hypervisor != "" && s.Hypervisor != h {
			d.warn(h, "", "this section is not used: hypervisor: is %s", s.Hypervisor)
		}
	}
}

// validateBoot: either a kernel, which is booted directly, or a firmware, which
// reads its kernel and command line from a disk.
func (d *decoder) validateBoot() {
	b := d.spec.Boot
	if !d.has("boot.firmware") {
		d.need("boot.kernel", b.Kernel, "write boot: {kernel: PATH}, or {firmware: bios} for a disk with a boot loader")
	} else {
		for _, key := range []string{"boot.kernel", "boot.initrd", "boot.cmdline"} {
			if d.has(key) {
				d.fail(key, "keep one of the two", "a firmware takes this from the boot loader on the disk, not from here")
			}
		}
		if len(d.spec.Disks) == 0 && !d.said["disks"] {
			d.fail("boot.firmware", "add disks: [{path: PATH}]", "there is no disk that it could boot from")
		}
	}
	if c := b.Cmdline; strings.ContainsFunc(c, unicode.IsControl) {
		d.fail("boot.cmdline", "write it in one line", "control characters and line breaks cannot go on a kernel's command line")
	} else if len(c) > 2047 {
		d.fail("boot.cmdline", "", "it is %d bytes long; an x86 kernel reads 2047", len(c))
	}
}

func (d *decoder) validateTimeouts() {
	s := d.spec
	if t := s.StopTimeout; t < 0 || t > time.Hour {
		d.fail("stop-timeout", "", "it must be between 0s and 1h")
	}
	if t := s.StartTimeout; t < time.Second || t > time.Hour {
		d.fail("start-timeout", "", "it must be between 1s and 1h")
	}
	if d.has("start-timeout") && s.Notify == vm.NotifyBoot {
		d.warn("start-timeout", "take it away, or write notify: guest", "it is not used: with notify: boot nothing waits for the guest")
	}
}

func (d *decoder) validateUnit() {
	u := d.spec.Unit
	switch {
	case strings.HasSuffix(u, "@.service"):
		d.fail("unit", "write the instance's name after the @", "%q is a template, not a unit that can run", u)
	case u != DefaultUnit(d.spec.Name) && (!unitForm().MatchString(u) || len(u) > 255):
		d.fail("unit", "the default is "+DefaultUnit("NAME"), "%q is not the name of a service", u)
	}
}

// notifySystemd is the first whose PID 1 sends READY=1 over vsock.
const notifySystemd = 254

// notifySocket is the credential that names the socket a guest says it to. With
// notify: guest it is the runner's.
const notifySocket = "vmm.notify_socket"

func (d *decoder) validateNotify() {
	s := d.spec
	if s.Guest.Systemd < notifySystemd {
		assumed := ""
		if !d.has("guest.systemd") {
			assumed = " (assumed: the file does not say)"
		}
		d.fail("notify", "say guest: {systemd: 254} or newer if it is, or write notify: boot",
			"a guest with systemd %d%s cannot say that it is ready (%d is the first that can)", s.Guest.Systemd, assumed, notifySystemd)
	}
	if s.Vsock == nil {
		d.fail("notify", "add vsock: {cid: 3}, or write notify: boot", "the guest says it is ready over vsock, and there is none")
	}
	const own, hint = "the guest is told by %s where to say that it is ready, and that is vmcred's to say", "take it away, or write notify: boot"
	for _, c := range s.Credentials {
		if c.Guest == notifySocket {
			d.fail(join("credentials", c.Host), hint, own, notifySocket)
		}
	}
	for _, c := range s.Static {
		if c.Name == notifySocket {
			d.fail(join("static", c.Name), hint, own, notifySocket)
		}
	}
	for i, o := range s.OEMStrings {
		if name, is := oemCredential(o); is && name == notifySocket {
			d.fail(fmt.Sprintf("oem-strings[%d]", i), hint, own, notifySocket)
		}
	}
}

func (d *decoder) validateDisks() {
	serials := map[string]int{}
	for i, disk := range d.spec.Disks {
		path := fmt.Sprintf("disks[%d]", i)
		d.need(path+".path", disk.Path, "write {path: PATH}")
		sp := path + ".serial"
		if len(disk.Serial) > 20 {
			d.fail(sp, "", "%d bytes; virtio-blk carries 20", len(disk.Serial))
		} else if !printable(disk.Serial) {
			d.fail(sp, "", "a serial must be printable ASCII")
		}
		if was, twice := serials[disk.Serial]; twice && disk.Serial != "" {
			d.fail(sp, "give each disk a serial of its own", "disks[%d] has the same serial", was)
		}
		serials[disk.Serial] = i
	}
}

func (d *decoder) validateInterfaces() {
	ids, macs := map[string]int{}, map[string]int{}
	for i, nic := range d.spec.Interfaces {
		path := fmt.Sprintf("interfaces[%d]", i)
		d.need(path+".id", nic.ID, "write the tap's name on the host: {type: tap, id: vm-test}")
		d.validateID(path+".id", nic.ID)
		if was, twice := ids[nic.ID]; twice && nic.ID != "" {
			d.fail(path+".id", "", "interfaces[%d] has the same tap", was)
		}
		ids[nic.ID] = i
		d.validateBridge(path, nic)
		if !d.has(path + ".mac") {
			continue
		}
		hw, err := net.ParseMAC(nic.MAC)
		switch {
		case err != nil || len(hw) != 6 || strings.Count(nic.MAC, ":") != 5:
			d.fail(path+".mac", `write it as "02:00:00:01:01:01"`, "%q is not a MAC address", nic.MAC)
			continue
		case hw[0]&1 != 0:
			d.fail(path+".mac", "make the first byte even, for example 02", "%s is a group address, not one of a network card", nic.MAC)
		case hw.String() == "00:00:00:00:00:00":
			d.fail(path+".mac", "leave it out, and the VMM chooses one", "this is no address at all")
		}
		if was, twice := macs[hw.String()]; twice {
			d.fail(path+".mac", "", "interfaces[%d] has the same address", was)
		}
		macs[hw.String()] = i
	}
}

// validateBridge: a tap of ours gets its name as it stands, which the kernel would
// take for a pattern (dev_alloc_name).
func (d *decoder) validateBridge(path string, nic vm.Interface) {
	if d.has(path + ".bridge") {
		d.need(path+".bridge", nic.Bridge, "write the name of a bridge of this host, or leave it out")
		d.validateID(path+".bridge", nic.Bridge)
	}
	if nic.Made() && strings.Contains(nic.ID, "%") {
		d.fail(path+".id", "use letters, digits, - and _", "%q cannot be the name of a tap that is made: the kernel puts a number in the place of %%d", nic.ID)
	}
	if nic.Bridge != "" && nic.Bridge == nic.ID {
		d.fail(path+".bridge", "", "a tap cannot be attached to itself")
	}
}

// validateID holds a tap's name to the kernel's rules (dev_valid_name), and to
// characters that no VMM takes for a separator.
func (d *decoder) validateID(path, id string) {
	switch {
	case len(id) > 15:
		d.fail(path, "", "%q is %d bytes long; the kernel takes 15", id, len(id))
	case id == "." || id == ".." || strings.ContainsAny(id, "/:,= \t") || !printable(id):
		d.fail(path, "use letters, digits, - and _", "%q cannot be a network device's name", id)
	}
}

// userForm is a user's name as useradd(8) and systemd take it.
var userForm = pattern(`^[A-Za-z_][A-Za-z0-9_.-]{0,30}$`)

func (d *decoder) validateShares() {
	tags := map[string]int{}
	for i, sh := range d.spec.Shares {
		path := fmt.Sprintf("shares[%d]", i)
		d.need(path+".tag", sh.Tag, "write {tag: NAME, source: DIRECTORY}")
		d.need(path+".source", sh.Source, "write {tag: NAME, source: DIRECTORY}")
		// A virtiofs tag is a field of 36 bytes.
		if len(sh.Tag) > 36 || !printable(sh.Tag) || strings.ContainsAny(sh.Tag, ", ") {
			d.fail(path+".tag", "", "a tag is at most 36 printable characters without space or comma")
		}
		if was, twice := tags[sh.Tag]; twice && sh.Tag != "" {
			d.fail(path+".tag", "", "shares[%d] has the same tag", was)
		}
		tags[sh.Tag] = i
		if d.has(path+".user") && !userForm().MatchString(sh.User) {
			d.fail(path+".user", "use a user's name, as in /etc/passwd", "%q is no user's name", sh.User)
		}
	}
}

// printable is true for printable ASCII, spaces among it.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
