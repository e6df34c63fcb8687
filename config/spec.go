// SPDX-License-Identifier: Apache-2.0

package config

import (
	"math"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// Hypervisors are the words `hypervisor:` may have. That a word is known does
// not mean that this vmcred has a driver for it.
func Hypervisors() []string {
	return []string{"qemu", "cloud-hypervisor", "firecracker", "alioth", "crosvm", "kvmtool", "stratovirt"}
}

// maxCPUs and maxMemory only catch slips of the finger; a VMM's own limit is
// for its driver to say.
const (
	maxCPUs   = 1024
	minMemory = 1 << 20
	maxMemory = 64 << 40
)

// top reads the whole file.
func (d *decoder) top(n *node) {
	s := d.spec
	version := int64(0)
	f := fields{
		"version":       d.integer(1, 1, func(v int64) { version = v }),
		"hypervisor":    word(d, &s.Hypervisor, Hypervisors()...),
		"cpus":          d.integer(1, maxCPUs, func(v int64) { s.CPUs = int(v) }),
		"memory":        d.size(&s.Memory),
		"boot":          d.boot,
		"console":       d.console,
		"guest":         d.guest,
		"notify":        word(d, &s.Notify, vm.NotifyBoot, vm.NotifyGuest),
		"disks":         each(d, &s.Disks, d.disk),
		"interfaces":    each(d, &s.Interfaces, d.netif),
		"shares":        each(d, &s.Shares, d.share),
		"vsock":         d.vsock,
		"autostart":     d.boolean(&s.Autostart),
		"unit":          d.str(&s.Unit),
		"watchdog":      d.boolean(&s.Watchdog),
		"start-timeout": d.duration(&s.StartTimeout),
		"stop-timeout":  d.duration(&s.StopTimeout),
		"qemu":          d.qemu,
		"credentials":   d.credentials,
		"static":        d.static,
		"oem-strings":   d.oemStrings,
	}
	for _, h := range Hypervisors()[1:] {
		f[h] = d.noSettings
	}
	f["cloud-hypervisor"] = d.cloudHypervisor
	d.object("", n, f)
	if version == 0 && n.kind == kindMapping {
		d.fail("version", `begin the file with "version: 1"`, "this key is missing")
	}
}

// each reads a list of mappings into a slice.
func each[T any](d *decoder, to *[]T, read func(string, *node, *T)) func(string, *node) {
	return func(path string, n *node) {
		d.list(path, n, func(sub string, c *node) {
			var v T
			read(sub, c, &v)
			*to = append(*to, v)
		})
	}
}

func (d *decoder) boot(path string, n *node) {
	b := &d.spec.Boot
	d.object(path, n, fields{
		"kernel": d.path(&b.Kernel), "initrd": d.path(&b.Initrd), "cmdline": d.str(&b.Cmdline),
		"firmware": d.firmware,
	})
}

// firmware reads bios or a path. A file of that name in the VM's directory is ./bios.
func (d *decoder) firmware(path string, n *node) {
	to := &d.spec.Boot.Firmware
	if n.kind == kindScalar && n.typ == typeString && n.text == vm.FirmwareBIOS {
		*to = vm.FirmwareBIOS
		return
	}
	d.path(to)(path, n)
}

// console reads stdout, off, socket, or a file's absolute path. A relative one
// is not taken: it would be a misspelt word more often than a file.
func (d *decoder) console(path string, n *node) {
	var s string
	d.str(&s)(path, n)
	if d.said[path] {
		return
	}
	switch m := vm.ConsoleMode(s); {
	case strings.HasPrefix(s, "/"):
		d.spec.Console = vm.Console{Mode: vm.ConsoleFile, Path: d.resolve(path, s)}
	case m == vm.ConsoleStdout || m == vm.ConsoleOff || m == vm.ConsoleSocket:
		d.spec.Console.Mode = m
	default:
		hint := "it can be stdout, off, socket, or a file's absolute path"
		if near := vm.Nearest(s, []string{"stdout", "off", "socket"}); near != "" {
			hint = "did you mean " + near + "?"
		}
		d.fail(path, hint, "%q is not known here", s)
	}
}

func (d *decoder) guest(path string, n *node) {
	g := &d.spec.Guest
	d.object(path, n, fields{
		"systemd": d.integer(1, 9999, func(v int64) { g.Systemd = int(v) }),
		"units": func(path string, n *node) {
			d.list(path, n, func(sub string, c *node) {
				var p string
				d.path(&p)(sub, c)
				g.Units = append(g.Units, p)
			})
		},
	})
}

func (d *decoder) disk(path string, n *node, to *vm.Disk) {
	d.object(path, n, fields{
		"path": d.path(&to.Path), "format": word(d, &to.Format, "raw", "qcow2"),
		"readonly": d.boolean(&to.ReadOnly), "serial": d.str(&to.Serial),
	})
}

func (d *decoder) netif(path string, n *node, to *vm.Interface) {
	d.object(path, n, fields{
		"type": word(d, &to.Type, "tap"), "id": d.str(&to.ID), "mac": d.str(&to.MAC),
		"bridge": d.str(&to.Bridge), "isolated": d.boolean(&to.Isolated),
	})
}

func (d *decoder) share(path string, n *node, to *vm.Share) {
	d.object(path, n, fields{
		"tag": d.str(&to.Tag), "source": d.path(&to.Source),
		"proto": word(d, &to.Proto, "virtiofs"), "readonly": d.boolean(&to.ReadOnly),
		"user": d.str(&to.User),
	})
}

func (d *decoder) vsock(path string, n *node) {
	d.spec.Vsock = &vm.Vsock{}
	// 0 to 2 are the hypervisor, the loopback and the host; 2³²-1 is "any".
	d.object(path, n, fields{
		"cid": d.integer(3, math.MaxUint32-1, func(v int64) { d.spec.Vsock.CID = uint32(v) }),
	})
}

func (d *decoder) qemu(path string, n *node) {
	q := &d.spec.QEMU
	d.object(path, n, fields{
		"machine": d.machine, "accel": word(d, &q.Accel, "auto", "kvm", "tcg"),
		"extra": func(path string, n *node) {
			d.list(path, n, func(sub string, c *node) {
				var s string
				d.str(&s)(sub, c)
				if strings.Contains(s, "\x00") {
					d.fail(sub, "", "a NUL ends an argument")
				}
				q.Extra = append(q.Extra, s)
			})
		},
	})
}

func (d *decoder) cloudHypervisor(path string, n *node) {
	d.object(path, n, fields{"extra": d.json(&d.spec.CloudHypervisor.Extra)})
}

func (d *decoder) machine(path string, n *node) {
	var s string
	if d.str(&s)(path, n); s == "microvm" {
		d.fail(path, "leave it out, or write q35", "the machine microvm takes SMBIOS strings and drops them without a word")
		return
	}
	word(d, &d.spec.QEMU.Machine, "q35")(path, n)
}

// noSettings is the section of a hypervisor that has no settings of its own yet.
func (d *decoder) noSettings(path string, n *node) {
	d.object(path, n, fields{})
}
