// SPDX-License-Identifier: Apache-2.0

// Package option knows which of QEMU's command-line options could carry a
// credential past the plan or show one, and which would undo what vmcred does. It
// follows qemu-options.hx of QEMU 7.2 to 10.1.
package option

import (
	"regexp"
	"strings"
)

// Refusal is one argument that is not passed on.
type Refusal struct {
	Index  int    // in the arguments
	Option string // the option's name, without dashes; never a value
	Reason string
}

// Why options are refused.
const (
	inFile    = "the VM's file has a key of its own for it, which is checked before a start"
	machines  = "vmcred chooses the machine, on which depends what credentials it carries"
	ownRoad   = "it would carry credentials past the plan: they stand under credentials: and static:"
	onArgv    = "it is a secret on a command line, where every process of the host can read it"
	boots     = "the guest would start with something that is not checked: what it boots from stands under boot:"
	debugger  = "who connects there can read the guest's whole memory, with the secrets in it"
	watched   = "who connects there sees the guest's screen, and can type"
	seesRAM   = "the program behind it sees the guest's whole memory, with the secrets in it"
	ramInFile = "the guest's memory, with the secrets in it, would be in a file"
	merged    = "a dump, or another VM's clock, would tell what is in the guest's memory"
	logs      = "what it writes can hold what the guest is given"
	unread    = "what stands in that file is not looked at"
	escapes   = "JSON with a backslash or an apostrophe is not looked through"
	oldState  = "the guest would go on with the values of another start"
	ownStart  = "vmcred starts QEMU and the guest, as the VM's own user, and stays with them"
	ownEnd    = "a guest's end is vmcred's to see: after a reset it would be given this start's values again"
	ownWalls  = "vmcred confines QEMU, and this would change how"
	descends  = "it reaches what QEMU inherits, the credentials' memory files among it"
	shares    = "directories stand under shares:, where it is checked that they cover no credential's source"
	room      = "the plan is made for the room that there is for credentials, and this would change it"
	later     = "it changes what was looked at before"
	oneString = "QEMU takes an option and its value as two arguments: [-device, virtio-balloon-pci]"
)

// refused are options that are refused whatever they say.
func refused() map[string]string {
	all := map[string]string{}
	for reason, names := range map[string]string{
		inFile:    "m smp accel enable-kvm name watchdog watchdog-action",
		ownRoad:   "smbios fw_cfg",
		boots:     "kernel initrd append dtb shim bios pflash L option-rom",
		debugger:  "monitor mon qmp qmp-pretty gdb s qtest qtest-log nographic semihosting semihosting-config",
		watched:   "vnc spice curses sdl",
		seesRAM:   "plugin",
		ramInFile: "mem-path",
		logs:      "D d dfilter trace dump-vmstate perfmap jitdump",
		unread:    "readconfig writeconfig",
		oldState:  "incoming loadvm",
		ownStart:  "daemonize pidfile S preconfig runas run-with async-teardown chroot h help version",
		ownEnd:    "action no-reboot no-shutdown",
		ownWalls:  "sandbox",
		descends:  "add-fd",
		shares:    "virtfs fsdev",
		later:     "set",
	} {
		for name := range strings.FieldsSeq(names) {
			all[name] = reason
		}
	}
	return all
}

// rule refuses values of some options.
type rule struct {
	options string // empty: whatever stands anywhere
	refuses func(value string) bool
	reason  string
}

// rules are looked at in order, and the first that applies counts.
func rules() []rule {
	text := func(expr string) func(string) bool { return regexp.MustCompile(expr).MatchString }
	// key is a key with a value that begins so, as key=value or in JSON.
	key := func(names, values string) func(string) bool {
		return text(`(?i)(?:^|[,{\s.])"?(?:` + names + `)"?\s*[=:]\s*"?(?:` + values + `)`)
	}
	// kind is what an option makes: its argument's first word, or the value of name.
	kind := func(name, values string) func(string) bool {
		return text(`(?:^|(?:^|[,{\s])"?` + name + `"?\s*[=:]\s*"?)(?:` + values + `)(?:$|[",])`)
	}
	harmless := text(`^-|^(?:(?:kernel-irqchip|hpet|pit|i8042|usb|sata|smbus|nvdimm|hmat)=[a-z]+(?:,|$))+$`)
	return []rule{
		{"", text(`(?i)io\.systemd\.credential`), ownRoad},
		{"", text(`(?:^|[/=:",\s])(?:dev/[./]*fd|proc/)`), descends},
		{"", key(`[a-z]*fds?`, ``), descends},
		{"", key(`type`, `fd\b`), descends}, // an address of a socket
		{"", text(`(?:^|[,":=])fd:`), descends},
		{"", key(`[a-z-]*password`, ``), onArgv},
		{"", text(`://[^/,"]*[:%][^/,"]*@`), onArgv},       // iSCSI's has a %
		{"", text(`(?s)(?:^|json:)\s*\{.*[\\']`), escapes}, // QEMU takes both quotes
		{"object", kind("qom-type", `secret`), onArgv},
		{"object", kind("qom-type", `memory-backend-(?:file|shm|epc)`), ramInFile},
		{"object", key(`dump|merge`, `on|yes|true|y`), merged},
		{"object", kind("qom-type", `filter-(?:dump|mirror|redirector)`), logs},
		{"object", kind("qom-type", `x-remote-object|x-vfio-user-server|cryptodev-vhost-user|vhost-user-backend`), seesRAM},
		{"object", kind("qom-type", `qtest`), debugger},
		{"device", kind("driver", `vhost-user-[a-z0-9-]*|ivshmem-[a-z0-9-]*|vfio-user-pci|x-pci-proxy-dev`), seesRAM},
		{"device", kind("driver", `loader|guest-loader`), boots},
		{"device", key(`romfile`, `[^,"}]`), boots},
		{"device", kind("driver", `i6300esb|ib700`), inFile},
		{"netdev net nic", kind("type", `vhost-user`), seesRAM},
		{"drive", key(`if`, `pflash`), boots},
		{"machine M", func(v string) bool { return !harmless(v) }, machines},
		{"serial parallel debugcon virtioconsole", text(`^mon:`), debugger},
		{"chardev", key(`mux`, `on|yes|true|y`), debugger},
		{"global", text(`(?i)fw_cfg|file-slots`), room},
		{"global", text(`romfile`), boots},
		{"display", func(v string) bool { return v != "none" && !strings.HasPrefix(v, "-") }, watched},
	}
}

// Refuse lists what of arguments that are to follow vmcred's own is not passed on.
// What begins with a dash counts as an option, wherever it stands. It catches slips,
// not who writes the VM's file: that one could name another program, too.
func Refuse(args []string) []Refusal {
	if len(args) == 0 {
		return nil
	}
	var out []Refusal
	whole, byValue := refused(), rules()
	option := ""
	for i, a := range args {
		name, is := nameOf(a)
		reason := whole[name]
		if end := strings.IndexAny(name, " \t\n="); end >= 0 {
			name, reason = name[:end], oneString // what follows may be a secret
		}
		if is {
			option = name
		}
		if reason == "" {
			reason = refusedValue(byValue, option, a)
		}
		if reason != "" {
			out = append(out, Refusal{i, option, reason})
		}
		if !is {
			option = "" // each takes one argument
		}
	}
	return out
}

// nameOf: QEMU takes one dash or two, and no value behind a "=".
func nameOf(arg string) (string, bool) {
	name, is := strings.CutPrefix(arg, "-")
	if !is || name == "" {
		return "", false
	}
	return strings.TrimPrefix(name, "-"), true
}

func refusedValue(rules []rule, option, value string) string {
	for _, r := range rules {
		applies := r.options == ""
		for o := range strings.FieldsSeq(r.options) {
			applies = applies || o == option
		}
		if applies && r.refuses(value) {
			return r.reason
		}
	}
	return ""
}
