// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/shim"
	"github.com/vmcred/vmcred/vm"
)

// execPrint shows what was understood, and what would be handed over by which
// channel. The error says why it would not start.
func (a *app) execPrint(c *cobra.Command, command *shim.Command, problems vm.Problems, f *execFlags) error {
	if err := launch.Harden(); err != nil {
		return err
	}
	o, err := a.execOptions(c, command, f)
	if err != nil {
		return err
	}
	o.Identity, err = a.execIdentity(command.Spec, f)
	var missing *runner.RefusedError
	if errors.As(err, &missing) {
		for _, p := range missing.Problems {
			p.Severity = vm.Warning
			problems = append(problems, p)
		}
	} else if err != nil {
		return err
	}
	arena := secret.NewArena()
	defer arena.Close()
	p, err := a.execPlan(c, o, arena)
	if p != nil {
		problems = append(problems, p.Warnings...)
		defer p.Close()
	}
	if f.asJSON {
		problems = append(problems, refusedFor(err)...)
		if jerr := a.execJSON(command, o, p, problems); jerr != nil {
			return jerr
		}
		if err != nil {
			return &shownError{codeOf(err)}
		}
		return nil
	}
	a.execTable(command, o, p)
	listProblems(a.stderr, styleOf(a.stderr, a.getenv), problems)
	return err
}

// execPlan prepares a start. QEMU is not looked for: it is not started here.
func (a *app) execPlan(c *cobra.Command, o runner.Options, arena *secret.Arena) (*runner.Prepared, error) {
	if o.Spec.Hypervisor == "cloud-hypervisor" {
		return runner.Prepare(c.Context(), o, arena)
	}
	src, err := o.Open(c.Context(), arena)
	if err != nil {
		return nil, openError(err)
	}
	set, problems := runner.Collect(c.Context(), o.Spec, src)
	_ = src.Close() // only read from: nothing to lose
	if fatal := problems.Fatal(); len(fatal) > 0 {
		return nil, &runner.RefusedError{Problems: fatal}
	}
	p := &runner.Prepared{Set: set, Warnings: problems}
	plan, refusals := delivery.Make(qemuOffers(o), delivery.Guest{Systemd: o.Spec.Guest.Systemd}, set.Metas())
	p.Plan = plan
	var refused vm.Problems
	for _, r := range refusals {
		refused = append(refused, vm.Problem{Message: r.Message, Hint: r.Hint})
	}
	if len(refused) > 0 {
		p.Close()
		return &runner.Prepared{Warnings: problems}, &runner.RefusedError{Problems: refused}
	}
	return p, nil
}

// qemuOffers: a microvm has no SMBIOS table, and ignores -smbios without a word.
func qemuOffers(o runner.Options) []delivery.Offer {
	var out []delivery.Offer
	for _, offer := range o.Driver.Offers(o.Spec, hypervisor.Info{}) {
		if offer.Channel != delivery.SMBIOS || o.Spec.QEMU.Machine != "microvm" {
			out = append(out, offer)
		}
	}
	return out
}

// execTable shows the VM for people, and the plan if there is one.
func (a *app) execTable(command *shim.Command, o runner.Options, p *runner.Prepared) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, row := range shownRows(command) {
		fmt.Fprintf(w, "%s\t%s\n", row[0], printable(row[1]))
	}
	_ = w.Flush()
	if p == nil || p.Set == nil {
		return
	}
	if o.Spec.Hypervisor == "cloud-hypervisor" {
		fmt.Fprintf(a.out, "runs        %s\n", quoteCommand(o.Driver.Command(o.Spec, p.Info, p.Plan)))
	}
	fmt.Fprintln(a.out)
	if o.Spec.Hypervisor == "cloud-hypervisor" {
		a.planTable(o.Spec, p)
	} else {
		a.planEntries(p)
	}
}

// shownVM is a specification without the values in it.
type shownVM struct {
	Name       string          `json:"name"`
	Hypervisor string          `json:"hypervisor"`
	CPUs       int             `json:"cpus"`
	MaxCPUs    int             `json:"max-cpus,omitempty"`
	Memory     int64           `json:"memory"` // bytes
	Boot       bootJSON        `json:"boot"`
	Console    consoleJSON     `json:"console"`
	Disks      []diskJSON      `json:"disks,omitempty"`
	Interfaces []nicJSON       `json:"interfaces,omitempty"`
	Shares     []shareJSON     `json:"shares,omitempty"`
	Vsock      *vsockJSON      `json:"vsock,omitempty"`
	Devices    []string        `json:"devices,omitempty"`
	Watchdog   bool            `json:"watchdog"`
	Machine    string          `json:"machine,omitempty"`
	Accel      string          `json:"accel,omitempty"`
	Arguments  []string        `json:"arguments,omitempty"` // QEMU's, as they are
	Extra      json.RawMessage `json:"extra,omitempty"`     // of cloud-hypervisor's configuration
	Static     []string        `json:"static,omitempty"`    // names
	OEMStrings int             `json:"oem-strings"`         // how many
}

// The parts of vm.Spec, with names for JSON.
type (
	bootJSON struct {
		Kernel   string `json:"kernel,omitempty"`
		Initrd   string `json:"initrd,omitempty"`
		Cmdline  string `json:"cmdline,omitempty"`
		Firmware string `json:"firmware,omitempty"`
	}
	consoleJSON struct {
		Mode vm.ConsoleMode `json:"mode"`
		Path string         `json:"path,omitempty"`
	}
	diskJSON struct {
		Path     string `json:"path"`
		Format   string `json:"format,omitempty"`
		ReadOnly bool   `json:"readonly"`
		Serial   string `json:"serial,omitempty"`
		Direct   bool   `json:"direct"`
		Queues   int    `json:"queues,omitempty"`
	}
	nicJSON struct {
		Type  string `json:"type"`
		ID    string `json:"id,omitempty"`
		MAC   string `json:"mac,omitempty"`
		Pairs int    `json:"pairs,omitempty"`
		FDs   []int  `json:"fds,omitempty"`
	}
	shareJSON struct {
		Tag    string `json:"tag"`
		Socket string `json:"socket"`
	}
	vsockJSON struct {
		CID    uint32 `json:"cid"`
		Socket string `json:"socket,omitempty"`
	}
)

func shown(s *vm.Spec) shownVM {
	v := shownVM{
		Name: s.Name, Hypervisor: s.Hypervisor, CPUs: s.CPUs, MaxCPUs: s.MaxCPUs, Memory: s.Memory,
		Boot: bootJSON(s.Boot), Console: consoleJSON(s.Console), Devices: s.Devices, Watchdog: s.Watchdog,
		Machine: s.QEMU.Machine, Accel: s.QEMU.Accel, Arguments: s.QEMU.Extra, Extra: s.CloudHypervisor.Extra, OEMStrings: len(s.OEMStrings),
	}
	for _, d := range s.Disks {
		v.Disks = append(v.Disks, diskJSON(d))
	}
	for _, n := range s.Interfaces {
		v.Interfaces = append(v.Interfaces, nicJSON{n.Type, n.ID, n.MAC, n.Pairs, n.FDs})
	}
	for _, f := range s.Shares {
		v.Shares = append(v.Shares, shareJSON{f.Tag, f.Socket})
	}
	if s.Vsock != nil {
		v.Vsock = &vsockJSON{s.Vsock.CID, s.Vsock.Socket}
	}
	for _, st := range s.Static {
		v.Static = append(v.Static, st.Name)
	}
	return v
}

func (a *app) execJSON(command *shim.Command, o runner.Options, p *runner.Prepared, problems vm.Problems) error {
	out := struct {
		Program   string         `json:"program"`
		APISocket string         `json:"api-socket,omitempty"` // not opened
		Command   []string       `json:"command,omitempty"`    // what would run
		VM        shownVM        `json:"vm"`
		Plan      *delivery.Plan `json:"plan,omitempty"`
		Problems  []problemJSON  `json:"problems"`
	}{Program: command.Program, APISocket: command.APISocket, VM: shown(command.Spec), Problems: withSeverity(worstFirst(problems))}
	if p != nil && p.Set != nil {
		out.Plan = &p.Plan
		if o.Spec.Hypervisor == "cloud-hypervisor" {
			out.Command = o.Driver.Command(o.Spec, p.Info, p.Plan)
		}
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// shownRows are the same for people, a line each.
func shownRows(command *shim.Command) [][2]string {
	s := command.Spec
	var rows [][2]string
	row := func(name, format string, args ...any) {
		rows = append(rows, [2]string{name, fmt.Sprintf(format, args...)})
	}
	word := func(s string) string { return quoteCommand([]string{s}) }
	row("program", "%s", word(command.Program))
	row("cpus", "%d%s", s.CPUs, when(s.MaxCPUs > 0, fmt.Sprintf(", at most %d", s.MaxCPUs)))
	row("memory", "%d MiB", s.Memory>>20)
	if s.QEMU.Machine != "" {
		row("machine", "%s, accel %s", word(s.QEMU.Machine), word(s.QEMU.Accel))
	}
	for _, b := range [][2]string{{"kernel", s.Boot.Kernel}, {"initrd", s.Boot.Initrd}, {"firmware", s.Boot.Firmware}, {"cmdline", s.Boot.Cmdline}} {
		if b[1] != "" {
			row(b[0], "%s", word(b[1]))
		}
	}
	if s.Hypervisor == "cloud-hypervisor" {
		row("console", "%s%s", s.Console.Mode, when(s.Console.Path != "", " "+word(s.Console.Path)))
	}
	rows = append(rows, deviceRows(s)...)
	for _, st := range s.Static {
		row("static", "%s, %s", word(st.Name), count(len(st.Value), "byte"))
	}
	if n := len(s.OEMStrings); n > 0 {
		row("oem strings", "%d", n)
	}
	if len(s.CloudHypervisor.Extra) > 0 {
		row("extra", "%s", s.CloudHypervisor.Extra)
	}
	if len(s.QEMU.Extra) > 0 {
		row("as it is", "%s", quoteCommand(s.QEMU.Extra))
	}
	if command.APISocket != "" {
		row("not opened", "%s", word(command.APISocket))
	}
	return rows
}

func deviceRows(s *vm.Spec) [][2]string {
	var rows [][2]string
	row := func(name string, parts ...string) {
		rows = append(rows, [2]string{name, quoteCommand(parts)})
	}
	for _, d := range s.Disks {
		row("disk", append([]string{d.Path}, words(d.Format, when(d.ReadOnly, "read-only"), when(d.Direct, "direct"),
			when(d.Queues > 0, fmt.Sprintf("queues=%d", d.Queues)), when(d.Serial != "", "serial="+d.Serial))...)...)
	}
	for _, n := range s.Interfaces {
		row("interface", words(n.ID, when(len(n.FDs) > 0, "fd="+strings.Trim(strings.ReplaceAll(fmt.Sprint(n.FDs), " ", ","), "[]")), n.MAC,
			when(n.Pairs > 0, fmt.Sprintf("pairs=%d", n.Pairs)))...)
	}
	for _, f := range s.Shares {
		row("share", f.Tag, f.Socket)
	}
	if v := s.Vsock; v != nil {
		row("vsock", words(fmt.Sprintf("cid=%d", v.CID), v.Socket)...)
	}
	for _, d := range s.Devices {
		row("device", d)
	}
	if s.Watchdog {
		row("watchdog", "yes")
	}
	return rows
}

// printable is foreign text for a terminal, which may be longer than a message.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func when(yes bool, text string) string {
	if yes {
		return text
	}
	return ""
}

// words leaves out what is empty.
func words(list ...string) []string {
	var out []string
	for _, w := range list {
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}
