// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// What is written here is cloud-hypervisor v53's, cloud-hypervisor/src/main.rs for the
// flags and vmm/src/config.rs for what they say.

// platformFlag is the flag that holds the strings.
const platformFlag = "--platform"

// Why flags and keys are refused.
const (
	notHandedOn = "vmcred does not hand it on"
	logsValues  = "cloud-hypervisor would log its whole configuration, with the values in it"
	showsValues = "who asks there is told the VM's strings, with the values in them"
	seesRAM     = "the process behind it sees the guest's whole memory, with the secrets in it"
	ramInFile   = "the guest's memory, with the secrets in it, would be a file"
	ramChange   = "the guest could let the host swap or dump its memory, with the secrets in it"
	elsewhere   = "what the guest prints would go where others can read it"
	ownEvents   = "vmcred needs it itself, to know how the VM is"
	staysOn     = "the program would stay when its guest has powered off, and vmcred ends with it"
	ownWalls    = "vmcred confines cloud-hypervisor itself, and within this it could not open the guest's console"
	patched     = "only a patched cloud-hypervisor has it"
	unread      = "vmcred does not understand it"
	carries     = "it carries data to the guest past vmcred's plan"
	startsNone  = "it starts no VM: run the program itself for it"
	otherImages = "what it starts is no VM of this command line"
)

// cloudHypervisorRules are all flags that there are.
func cloudHypervisorRules() map[string]rule {
	rules := understood()
	for name, reason := range refused() {
		rules[name] = rule{arity: many, refused: reason}
	}
	return rules
}

func understood() map[string]rule {
	return map[string]rule{
		"--api-socket": {arity: one, do: (*parser).apiSocket},
		"--balloon":    {arity: one, do: (*parser).balloon},
		"--cmdline":    {arity: one, do: (*parser).cmdline},
		"--console":    {arity: one, do: (*parser).console},
		"--cpus":       {arity: one, do: (*parser).cpus},
		"--device":     {arity: many, do: each((*parser).device)},
		"--disk":       {arity: many, do: each((*parser).disk)},
		"--firmware":   {arity: one, do: func(p *parser, f flag) { p.spec.Boot.Firmware = p.abs(f.args[0].text) }},
		"--fs":         {arity: many, do: each((*parser).share)},
		"--initramfs":  {arity: one, do: func(p *parser, f flag) { p.spec.Boot.Initrd = p.abs(f.args[0].text) }},
		"--kernel":     {arity: one, do: func(p *parser, f flag) { p.spec.Boot.Kernel = p.abs(f.args[0].text) }},
		"--memory":     {arity: one, do: (*parser).memory},
		"--net":        {arity: many, do: each((*parser).net)},
		platformFlag:   {arity: one, do: (*parser).platform},
		"--pmem":       {arity: many, do: each((*parser).pmem)},
		"--pvpanic":    {do: func(p *parser, _ flag) { p.set(true, "pvpanic") }},
		"--rng":        {arity: one, do: (*parser).rng},
		"--rtc":        {arity: optional, do: (*parser).rtc},
		"--seccomp":    {arity: one, do: (*parser).seccomp},
		"--serial":     {arity: one, do: (*parser).serial},
		"--tpm":        {arity: one, do: (*parser).tpm},
		"--vdpa":       {arity: many, do: each((*parser).vdpa)},
		"--vsock":      {arity: one, do: (*parser).vsock},
		"--watchdog":   {do: func(p *parser, _ flag) { p.spec.Watchdog = true }},
	}
}

// refused are flags and why.
func refused() map[string]string {
	out := map[string]string{}
	for reason, names := range map[string][]string{
		logsValues:  {"-v", "--log-file", "--log-format"},
		showsValues: {"--dbus-object-path", "--dbus-service-name", "--dbus-system-bus"},
		seesRAM:     {"--gdb", "--generic-vhost-user", "--ivshmem", "--user-device"},
		ramInFile:   {"--memory-zone"},
		ramChange:   {"--pvmemcontrol"},
		elsewhere:   {"--debug-console"},
		ownEvents:   {"--event-monitor"},
		staysOn:     {"--no-shutdown"},
		ownWalls:    {"--landlock", "--landlock-rules"},
		patched:     {"--gpu"},
		unread:      {"--numa", "--pci-segment", "--rate-limit-group"},
		carries:     {"--fw-cfg-config", "--host-data"},
		otherImages: {"--igvm", "--restore"},
		startsNone:  {"--help", "-h", "--version", "-V"},
	} {
		for _, n := range names {
			out[n] = reason
		}
	}
	return out
}

// each calls f for every argument of a flag.
func each(do func(*parser, flag, word)) func(*parser, flag) {
	return func(p *parser, f flag) {
		for _, w := range f.args {
			do(p, f, w)
		}
	}
}

// What the program gives a VM whose command line does not say.
const (
	defaultCPUs   = 1
	defaultMemory = 512 << 20
	defaultRNG    = "/dev/urandom"
)

func (p *parser) cloudHypervisor(argv []string) {
	p.spec.CPUs, p.spec.Memory = defaultCPUs, defaultMemory
	seen := map[string]bool{}
	for _, f := range p.flags(argv, cloudHypervisorRules()) {
		if f.rule.refused != "" {
			p.fault(f.word, f, "this is refused: "+f.rule.refused, "")
			continue
		}
		seen[f.text] = true
		f.rule.do(p, f)
	}
	p.absent(seen)
	p.boots(seen)
	p.sharedMemory()
}

// absent gives what the program has by default and a specification has not.
func (p *parser) absent(seen map[string]bool) {
	if !seen["--serial"] {
		p.set("Null", "serial", "mode")
	}
	if !seen["--console"] {
		p.note("without --console the program has a virtio console on its terminal; here there is none: --serial tty is the guest's console, --console off says that none is wanted")
	}
}

// boots wants something to boot, and no more than one thing.
func (p *parser) boots(seen map[string]bool) {
	b := &p.spec.Boot
	switch {
	case b.Kernel == "" && b.Firmware == "":
		p.add(vm.Problem{Message: "there is neither --kernel nor --firmware", Hint: "without one the program waits for its API, which nothing opens here"})
	case b.Kernel != "" && b.Firmware != "":
		p.add(vm.Problem{Message: "there are both --kernel and --firmware"})
	case b.Firmware != "" && (seen["--cmdline"] || seen["--initramfs"]):
		p.note("with --firmware the program ignores --cmdline and --initramfs")
		b.Cmdline, b.Initrd = "", ""
	}
}

func (p *parser) cmdline(f flag) {
	p.spec.Boot.Cmdline = f.args[0].text
	p.refuseSetCredential(f.args[0], f)
}

// refuseSetCredential keeps credentials off the kernel's command line.
func (p *parser) refuseSetCredential(w word, f flag) {
	if strings.Contains(w.text, "systemd.set_credential") {
		p.fault(w, f, "it carries a credential to the guest, where every process of this host and of the guest can read it",
			"take systemd.set_credential= out, and give the value with --load-credential or --credentials")
	}
}

func (p *parser) apiSocket(f flag) {
	o := f.args[0].text
	name, isPath := strings.CutPrefix(o, "path=")
	if strings.HasPrefix(o, "fd=") {
		name = ""
	} else if isPath {
		name = dequote(name)
	}
	p.cmd.APISocket = p.abs(name)
	p.note("--api-socket is not opened: %s. SIGTERM presses the VM's power button", showsValues)
}

func (p *parser) seccomp(f flag) {
	if w := f.args[0]; w.text != "true" {
		p.fault(w, f, quote(w.text)+" is refused: vmcred runs no hypervisor without its filter of system calls", "--seccomp true")
	}
}

// platform is where the strings are.
func (p *parser) platform(f flag) {
	o := p.options(f, f.args[0], known("oem_strings", "num_pci_segments", "iommu_segments", "iommu_address_width", "iommufd", "vfio_p2p_dma",
		"system_manufacturer", "system_product_name", "system_version", "system_serial_number", "system_uuid", "system_sku_number",
		"system_family", "chassis_asset_tag", "serial_number", "uuid").
		but("it is the number of a descriptor, which cloud-hypervisor does not inherit", "iommufd_fd").
		but("systemd does not read SMBIOS strings in a confidential VM", "tdx", "sev_snp"))
	p.set(map[string]any{}, "platform")
	p.strings(o)
	for key := range o.values {
		name := map[string]string{"serial_number": "system_serial_number", "uuid": "system_uuid"}[key]
		switch {
		case key == "oem_strings" || !o.has(key):
		case name != "" && o.has(name): // the new name wins
		case name != "":
			p.set(o.text(key), "platform", name)
		case strings.HasPrefix(key, "system_") || key == "chassis_asset_tag":
			p.set(o.text(key), "platform", key)
		case key == "num_pci_segments":
			p.set(o.number(key, 1, 1<<16-1), "platform", key)
		case key == "iommu_address_width":
			p.set(o.number(key, 64, 1<<8-1), "platform", "iommu_address_width_bits")
		case key == "iommu_segments":
			p.set(o.list(key), "platform", key)
		default: // iommufd, vfio_p2p_dma
			p.set(o.toggle(key, false), "platform", key)
		}
	}
}

func (p *parser) memory(f flag) {
	o := p.options(f, f.args[0], known("size", "mergeable", "hotplug_method", "hotplug_size", "hotplugged_size", "shared",
		"hugepages", "hugepage_size", "prefault", "reserve", "thp").but(ramInFile, "file"))
	p.spec.Memory = int64(o.size("size", defaultMemory)) // parseSize keeps it below MaxInt64
	if m, ok := o.choice("hotplug_method", map[string]string{"acpi": "Acpi", "virtio-mem": "VirtioMem"}); ok {
		p.set(m, "memory", "hotplug_method")
	}
	for _, key := range []string{"hotplug_size", "hotplugged_size", "hugepage_size"} {
		if o.has(key) {
			p.set(o.size(key, 0), "memory", key)
		}
	}
	for _, key := range []string{"mergeable", "hugepages", "prefault", "reserve"} {
		if o.toggle(key, false) {
			p.set(true, "memory", key)
		}
	}
	if !o.toggle("thp", true) {
		p.set(false, "memory", "thp")
	}
	p.set(o.toggle("shared", false), "memory", "shared")
}

// sharedMemory leaves out what a specification says by its shares.
func (p *parser) sharedMemory() {
	m, _ := p.extra["memory"].(map[string]any)
	shared, _ := m["shared"].(bool)
	if !shared && len(p.spec.Shares) > 0 {
		p.add(vm.Problem{Field: "--fs", Message: "a share needs memory that its virtiofsd can see: the program would not boot", Hint: "--memory shared=on"})
	}
	if m != nil && shared == (len(p.spec.Shares) > 0) {
		delete(m, "shared")
		if len(m) == 0 {
			delete(p.extra, "memory")
		}
	}
}

func (p *parser) cpus(f flag) {
	w := f.args[0]
	if _, err := parseUint(w.text); err == nil { // a number alone, as old versions had it
		w.text = "boot=" + w.text
	}
	o := p.options(f, w, known("boot", "max", "topology", "kvm_hyperv", "max_phys_bits", "features", "nested", "core_scheduling").but(unread, "affinity", "profile"))
	const most = 1<<31 - 1
	p.spec.CPUs = int(o.number("boot", defaultCPUs, most))
	p.spec.MaxCPUs = int(o.number("max", 0, most))
	if p.spec.MaxCPUs == p.spec.CPUs {
		p.spec.MaxCPUs = 0
	}
	if o.has("topology") {
		p.topology(o)
	}
	if o.toggle("kvm_hyperv", false) {
		p.set(true, "cpus", "kvm_hyperv")
	}
	if o.has("max_phys_bits") {
		p.set(o.number("max_phys_bits", 46, 1<<8-1), "cpus", "max_phys_bits")
	}
	if list := strings.Trim(o.values["features"], "[]"); list != "" {
		if list != "amx" {
			o.wrong("features", "[amx]")
		}
		p.set(true, "cpus", "features", "amx")
	}
	if !o.toggle("nested", true) {
		p.set(false, "cpus", "nested")
	}
	if v, ok := o.choice("core_scheduling", map[string]string{"vm": "Vm", "vcpu": "Vcpu", "off": "Off"}); ok {
		p.set(v, "cpus", "core_scheduling")
	}
}

func (p *parser) topology(o *options) {
	names := []string{"threads_per_core", "cores_per_die", "dies_per_package", "packages"}
	parts := strings.Split(o.text("topology"), ":")
	if len(parts) != len(names) {
		o.wrong("topology", "THREADS:CORES:DIES:PACKAGES")
		return
	}
	for i, part := range parts {
		n, err := parseUint(part)
		if err != nil || n > 1<<16-1 {
			o.wrong("topology", "THREADS:CORES:DIES:PACKAGES")
			return
		}
		p.set(n, "cpus", "topology", names[i])
	}
}

// port is where a serial port or a console leads: one word of these, or one of
// the two with a path.
func (p *parser) port(f flag) (*options, string) {
	modes := []string{"off", "null", "tty", "pty"}
	o := p.options(f, f.args[0], known("file", "socket").but(notHandedOn, "id", "iommu", "pci_segment", "pci_device_id"), modes...)
	var said []string
	for _, m := range append(modes, "file", "socket") {
		if _, ok := o.values[m]; ok {
			said = append(said, m)
		}
	}
	if len(said) != 1 {
		o.fault("", "it must be one of off, null, tty, pty, file=PATH and socket=PATH", "")
		return o, ""
	}
	return o, said[0]
}

func (p *parser) serial(f flag) {
	o, mode := p.port(f)
	switch mode {
	case "null":
		p.set("Null", "serial", "mode")
	case "tty":
		p.spec.Console.Mode = vm.ConsoleStdout
		p.note("--serial tty: what the guest prints goes to standard output; nothing is read from standard input")
	case "file":
		p.spec.Console = vm.Console{Mode: vm.ConsoleFile, Path: o.path("file")}
	case "pty", "socket":
		o.fault("", mode+" is refused: "+elsewhere, "--serial tty, file=PATH or null")
	}
}

func (p *parser) console(f flag) {
	o, mode := p.port(f)
	switch mode {
	case "null":
		p.set("Null", "console", "mode")
	case "off", "":
	default:
		o.fault("", mode+" is refused: vmcred leads the serial port, not the virtio console", "--console null --serial "+mode+", and console=ttyS0 for the guest's kernel")
	}
}

// strings makes static credentials of those that are, and keeps the others.
func (p *parser) strings(o *options) {
	v := strings.Trim(strings.TrimSpace(o.values["oem_strings"]), "[]")
	if v == "" {
		return // of [] the program makes one empty string, and nothing after that would arrive
	}
	list, err := splitCommas(v)
	if err != nil {
		o.fault("oem_strings", err.Error(), "")
		return
	}
	for i, s := range list {
		p.oemString(o, i, s)
	}
	slices.SortStableFunc(p.spec.Static, func(a, b vm.Static) int { return strings.Compare(a.Name, b.Name) })
}
