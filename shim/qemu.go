// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"math"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// What is written here is QEMU 7.2's and newer, qemu-options.hx. What a plan does not
// depend on is kept as it is, in order.

// Why options of QEMU are refused.
const (
	monitors   = "who connects there can read the guest's memory, with the secrets in it"
	qemuLogs   = "its log can hold what the guest is given"
	foreign    = "what stands in that file is not looked at, and could be a credential"
	oldState   = "the guest would go on with the values of the time when it was saved"
	ownUser    = "vmcred starts it as the VM's own user, and stays"
	ownStart   = "vmcred starts the guest itself"
	watched    = "who connects there sees the guest's screen"
	intoMemory = "it can read the guest's memory, with the secrets in it"
	onArgv     = "it is a secret on a command line, where every process on the host can read it"
)

// qemuRefused are options that are refused whatever they say.
func qemuRefused() map[string]string {
	out := map[string]string{}
	for reason, names := range map[string]string{
		monitors:   "mon monitor",
		debugger:   "gdb s",
		qemuLogs:   "D d dfilter trace",
		foreign:    "readconfig",
		elsewhere:  "writeconfig",
		oldState:   "incoming loadvm",
		ownUser:    "chroot daemonize runas",
		ownStart:   "S preconfig",
		watched:    "spice vnc",
		intoMemory: "plugin qtest qtest-log",
		ramInFile:  "mem-path",
		startsNone: "h help version dump-vmstate audio-help",
	} {
		for _, n := range strings.Fields(names) {
			out[n] = reason
		}
	}
	return out
}

// debugger is why gdb is refused.
const debugger = "a debugger sees the guest's whole memory, with the secrets in it"

// qemuBare are options without an argument, qemuValued those with one.
const (
	qemuBare = "enable-kvm no-reboot no-shutdown nographic nodefaults no-user-config nouserconfig usb snapshot full-screen portrait " +
		"no-acpi no-hpet no-fd-bootchk win2k-hack singlestep only-migratable mem-prealloc daemonize s S h help version audio-help " +
		"preconfig enable-sync-profile semihosting no-quit alt-grab ctrl-grab"
	qemuValued = "machine M cpu accel smp numa add-fd set global boot m mem-path k audio audiodev device name uuid fda fdb hda hdb hdc hdd " +
		"cdrom blockdev drive mtdblock sd pflash fsdev virtfs iscsi usbdevice display spice rotate vga vnc acpitable smbios netdev nic net " +
		"chardev tpmdev bios kernel append initrd dtb shim compat fw_cfg serial parallel monitor qmp qmp-pretty mon debugcon pidfile D d dfilter " +
		"seed L icount watchdog-action watchdog loadvm chroot runas incoming sandbox readconfig writeconfig trace plugin qtest qtest-log " +
		"action msg dump-vmstate object gdb overcommit echr rtc xen-domid tb-size semihosting-config run-with smp-cache prom-env g vmstate"
)

// qemu reads QEMU's command line, as far as a plan needs it.
func (p *parser) qemu(argv []string) {
	p.spec.CPUs, p.spec.Memory = 1, 128<<20 // QEMU's own defaults
	p.spec.QEMU = vm.QEMU{Machine: "pc", Accel: "tcg"}
	bare, valued, refused := strings.Fields(qemuBare), strings.Fields(qemuValued), qemuRefused()
	for i := 1; i < len(argv); i++ {
		option := strings.TrimPrefix(strings.TrimPrefix(argv[i], "-"), "-")
		f := flag{word: word{i, argv[i]}}
		switch {
		case !isFlag(argv[i]):
			p.keep(argv[i]) // a disk
			continue
		case slices.Contains(bare, option):
		case !slices.Contains(valued, option):
			hint := ""
			if near := vm.Nearest(option, append(bare, valued...)); near != "" {
				hint = "did you mean -" + near + "?"
			}
			p.fault(f.word, f, "QEMU has no such option", hint)
			continue
		case i+1 == len(argv):
			p.fault(f.word, f, "its argument is missing", "")
			continue
		default:
			i++
			f.args = []word{{i, argv[i]}}
		}
		if reason := refused[option]; reason != "" && !(option == "monitor" && slices.Contains([]string{"none", "null"}, argv[i])) {
			p.fault(f.word, f, "this is refused: "+reason, "")
			continue
		}
		p.qemuOption(option, f)
	}
	if p.spec.Boot.Kernel == "" {
		p.note("without -kernel it boots from a disk, by a firmware")
		p.spec.Boot.Firmware = vm.FirmwareBIOS
	}
}

// keep leaves arguments as they are.
func (p *parser) keep(words ...string) { p.spec.QEMU.Extra = append(p.spec.QEMU.Extra, words...) }

// qemuOption takes what a plan needs, and keeps the rest.
func (p *parser) qemuOption(option string, f flag) {
	take := map[string]func(*parser, flag){
		"machine": (*parser).qemuMachine, "M": (*parser).qemuMachine, "accel": (*parser).qemuAccel,
		"m": (*parser).qemuMemory, "smp": (*parser).qemuCPUs, "name": (*parser).qemuName,
		"kernel": func(p *parser, f flag) { p.spec.Boot.Kernel = p.abs(f.args[0].text) },
		"initrd": func(p *parser, f flag) { p.spec.Boot.Initrd = p.abs(f.args[0].text) },
		"append": (*parser).cmdline, "smbios": (*parser).qemuSMBIOS, "fw_cfg": (*parser).qemuFwCfg,
		"qmp": (*parser).qemuQMP, "qmp-pretty": (*parser).qemuQMP, "device": (*parser).qemuDevice, "object": (*parser).qemuObject,
		"enable-kvm": func(p *parser, _ flag) { p.spec.QEMU.Accel = "kvm" },
	}[option]
	if take != nil {
		take(p, f)
		return
	}
	for _, w := range f.args {
		if _, has := lookUp(qemuOptions(w.text, ""), "password"); has {
			p.fault(w, f, "password= is refused: "+onArgv, "")
			return
		}
	}
	p.keepFlag(f)
}

func (p *parser) keepFlag(f flag) {
	p.keep(f.text)
	for _, w := range f.args {
		p.keep(w.text)
	}
}

// pair is one key of an argument, and its value.
type pair struct{ key, value string }

// qemuOptions splits as QemuOpts does: at commas, two of which are one. first is the
// key of a first part that has none.
func qemuOptions(s, first string) []pair {
	var out []pair
	for i, part := range strings.Split(strings.ReplaceAll(s, ",,", "\x00"), ",") {
		key, value, has := strings.Cut(strings.ReplaceAll(part, "\x00", ","), "=")
		switch {
		case !has && i == 0 && first != "":
			key, value = first, key
		case !has:
			value = "on"
		}
		out = append(out, pair{key, value})
	}
	return out
}

// lookUp finds the last of a key.
func lookUp(list []pair, key string) (string, bool) {
	for _, o := range slices.Backward(list) {
		if o.key == key {
			return o.value, true
		}
	}
	return "", false
}

// rest writes the pairs that are not taken.
func rest(list []pair, taken ...string) string {
	var out []string
	for _, o := range list {
		if !slices.Contains(taken, o.key) {
			out = append(out, o.key+"="+strings.ReplaceAll(o.value, ",", ",,"))
		}
	}
	return strings.Join(out, ",")
}

func (p *parser) qemuMachine(f flag) {
	list := qemuOptions(f.args[0].text, "type")
	if v, ok := lookUp(list, "type"); ok {
		p.spec.QEMU.Machine = v
	}
	if v, ok := lookUp(list, "accel"); ok {
		p.accel(v)
	}
	if v, _ := lookUp(list, "dump-guest-core"); v == "on" {
		p.fault(f.args[0], f, "dump-guest-core= is refused: the guest's memory, with the secrets in it, would be in a core dump", "")
	}
	if r := rest(list, "type", "accel"); r != "" {
		p.keep("-machine", r)
	}
}

func (p *parser) qemuAccel(f flag) {
	list := qemuOptions(f.args[0].text, "accel")
	if v, ok := lookUp(list, "accel"); ok {
		p.accel(v)
	}
	if r := rest(list, "accel"); r != "" {
		p.note("what -accel says beside its name is left out")
	}
}

// accel: the first of several that works is what a specification calls auto.
func (p *parser) accel(v string) {
	if strings.Contains(v, ":") {
		v = "auto"
	}
	p.spec.QEMU.Accel = v
}

// qemuMemory: a number alone is MiB.
func (p *parser) qemuMemory(f flag) {
	w := f.args[0]
	list := qemuOptions(w.text, "size")
	v, ok := lookUp(list, "size")
	upper := strings.ToUpper(v)
	if n, t := strings.CutSuffix(upper, "T"); t {
		if b, fits := parseSize(n + "G"); fits && b <= math.MaxInt64>>10 {
			p.spec.Memory = int64(b << 10)
		} else {
			p.fault(w, f, quote(v)+" is no size", "")
		}
	} else if ok {
		if upper != "" && strings.Trim(upper[len(upper)-1:], "0123456789") == "" {
			upper += "M"
		}
		b, fits := parseSize(strings.TrimSuffix(upper, "B"))
		if !fits {
			p.fault(w, f, quote(v)+" is no size", "")
		}
		p.spec.Memory = int64(b) // parseSize keeps it below MaxInt64
	}
	if rest(list, "size") != "" {
		p.keepFlag(f)
	}
}

func (p *parser) qemuCPUs(f flag) {
	w := f.args[0]
	list := qemuOptions(w.text, "cpus")
	for key, to := range map[string]*int{"cpus": &p.spec.CPUs, "maxcpus": &p.spec.MaxCPUs} {
		v, ok := lookUp(list, key)
		if !ok {
			continue
		}
		n, err := parseUint(v)
		if err != nil || n > math.MaxInt32 {
			p.fault(w, f, key+"= "+quote(v)+" is no number", "")
			continue
		}
		*to = int(n)
	}
	if rest(list, "cpus", "maxcpus") != "" {
		p.keepFlag(f)
	}
}

func (p *parser) qemuName(f flag) {
	list := qemuOptions(f.args[0].text, "guest")
	p.spec.Name, _ = lookUp(list, "guest")
	if r := rest(list, "guest"); r != "" {
		p.keepFlag(f)
	}
}
