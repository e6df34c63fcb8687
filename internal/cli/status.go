// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [VM]",
		Short: "show whether a VM runs, since when, and what it was given",
		Long: `Show whether a VM runs, since when, and what it was given; without a name, all
that run or were left behind by a crash. A VM's unit is asked about at systemd; a
plain run is known by what it wrote down, if nobody else could have written it.

What it was given is compared with what its source has by now: if that changed, a
restart is needed. Without a name the broker is shown, too.

Exit status: 0 it runs, or no VM was named; 3 it does not run, as with systemctl
status; 78 there is no such VM. --json prints one object for a VM; without a name
one with "broker" and "vms", a list of them.`,
		Example: `  vmcred status
  vmcred status test-vm
  vmcred status test-vm --json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneVM(c, args)
		},
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.statusOfAll(c, asJSON)
			}
			return a.status(c, args[0], asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) status(c *cobra.Command, arg string, asJSON bool) error {
	_, i, err := a.named(c.Context(), arg)
	if err != nil {
		return err
	}
	defer i.Close()
	a.compare(c.Context(), i)
	switch {
	case asJSON:
		err = a.printJSON(i)
	case i.State == broken:
		return &runner.RefusedError{Problems: i.problems}
	default:
		a.showStatus(i)
		a.showProblems(a.stderr, asWarnings(i.problems))
	}
	switch {
	case err != nil:
		return err
	case i.State == broken:
		return &shownError{exitRefused}
	case !i.State.runs():
		return &shownError{exitStopped}
	}
	return nil
}

// asWarnings: what keeps a file from being used does not stop what runs.
func asWarnings(problems vm.Problems) vm.Problems {
	var out vm.Problems
	for _, p := range problems.Fatal() {
		p.Severity = vm.Warning
		out = append(out, p)
	}
	return out
}

func (a *app) statusOfAll(c *cobra.Command, asJSON bool) error {
	in, err := a.inspector()
	if err != nil {
		return err
	}
	vms, err := a.all(c.Context(), in)
	if err != nil {
		return err
	}
	shown := []*inspected{}
	for _, i := range vms {
		defer i.Close()
		if i.State != stopped && i.State != broken {
			a.compare(c.Context(), i)
			shown = append(shown, i)
		}
	}
	health := a.brokerHealth(c.Context())
	if asJSON {
		return a.printJSON(struct {
			Broker *brokerHealth `json:"broker,omitempty"`
			VMs    []*inspected  `json:"vms"`
		}{health, shown})
	}
	a.showBroker(health)
	for n, i := range shown {
		if n > 0 {
			fmt.Fprintln(a.out)
		}
		a.showStatus(i)
	}
	if len(shown) == 0 {
		fmt.Fprintln(a.out, "no VM runs")
		if in.without != nil {
			fmt.Fprintf(a.out, "  (%v: only what vmcred run started is known)\n", in.without)
		}
		fmt.Fprintln(a.out, "  see what there is: vmcred list")
	}
	return nil
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// showStatus prints one VM for people.
func (a *app) showStatus(i *inspected) {
	st := styleOf(a.stdout, a.getenv)
	fmt.Fprintf(a.out, "%s: %s\n", st.bold(i.VM), i.headline(st))
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	if i.Detail != "" {
		row("why", "%s", console.OneLine(i.Detail))
	}
	if i.Hint != "" {
		row("do", "%s", i.Hint)
	}
	if i.File != "" {
		row("file", "%s", console.QuotePath(i.File))
	}
	if i.Version != "" {
		row("hypervisor", "%s %s, %s", i.Hypervisor, i.Version, i.Accel)
	} else if i.Hypervisor != "" {
		row("hypervisor", "%s", i.Hypervisor)
	}
	i.showProcesses(row)
	_ = w.Flush()
	if len(i.Delivered) > 0 {
		showDelivered(a.out, st, i.Delivered)
	} else if i.Declared > 0 {
		fmt.Fprintf(a.out, "%s: vmcred plan %s\n", declared(i), i.VM)
	}
}

// headline is the state and its time.
func (i *inspected) headline(st style) (said string) {
	word := string(i.State)
	switch i.State {
	case running:
		word = st.green(word)
	case failed, dead, broken:
		word = st.red(word)
	case starting, stopping:
		word = st.yellow(word)
	case stopped:
	}
	if !i.State.runs() || i.Started.IsZero() {
		return word
	}
	if i.RestartNeeded {
		defer func() { said += ", " + st.yellow("restart needed") }()
	}
	word += " since " + i.Started.Local().Format("2006-01-02 15:04:05 MST")
	if i.Ready == nil {
		return word
	}
	how := map[string]string{
		string(vm.NotifyBoot): "ready (the guest runs)", string(vm.NotifyGuest): "ready (the guest said so)",
	}[i.Ready.By]
	if took := i.Ready.At.Sub(i.Started); took > 0 && i.Ready.By == string(vm.NotifyGuest) {
		how += ", after " + took.Round(time.Millisecond).String()
	}
	return word + ", " + how
}

func (i *inspected) showProcesses(row func(what, format string, args ...any)) {
	if i.RunnerPID > 0 {
		row("runner", "process %d", i.RunnerPID)
	}
	if i.VMMPID > 0 && i.VMMUser != nil {
		row("VMM", "process %d, uid %d", i.VMMPID, *i.VMMUser)
	}
	u := i.Systemd
	if u == nil {
		return
	}
	row("unit", "%s: %s (%s)", i.Unit, u.Active, u.Sub)
	if !u.Up() {
		return
	}
	row("invocation", "%s", u.Invocation)
	row("cgroup", "%s", u.ControlGroup)
	if u.Restarts > 0 {
		row("restarts", "%d", u.Restarts)
	}
	if u.StatusText != "" {
		row("says", "%s", u.StatusText)
	}
}

func declared(i *inspected) string {
	if i.Unknown != "" {
		return i.Unknown + "\n" + count(i.Declared, "credential") + " in its file"
	}
	if i.State.runs() {
		return count(i.Declared, "credential") + " in its file; what was given is in the journal"
	}
	return count(i.Declared, "credential") + " in its file"
}

// showBroker prints how the host's broker is.
func (a *app) showBroker(h *brokerHealth) {
	st := styleOf(a.stdout, a.getenv)
	switch {
	case h == nil:
		return
	case h.State == nil:
		fmt.Fprintf(a.out, "%s: %s\n  do  %s\n\n", st.bold("broker"), st.red(console.OneLine(h.Error)), h.Hint)
		return
	case h.Fault != "":
		fmt.Fprintf(a.out, "%s: %s\n  why  %s\n  do   %s\n", st.bold("broker"), st.red("hands nothing out"), console.OneLine(h.Fault), h.State.Hint)
	default:
		fmt.Fprintf(a.out, "%s: %s, process %d since %s, %s and %d refused\n", st.bold("broker"), st.green("up"),
			h.PID, h.Since.Local().Format(time.DateTime), count(int(h.Starts), "start"), h.Refused)
	}
	if h.Store != "" {
		fmt.Fprintf(a.out, "  store  %s\n", console.OneLine(h.Store))
	}
	if h.Log != "" {
		fmt.Fprintf(a.out, "  log    %s\n", console.QuotePath(h.Log))
	}
	fmt.Fprintln(a.out)
}

// sourceNow is what a credential's source has by now.
func sourceNow(st style, now state.Now) string {
	if now == "" { // static: it stands in the VM's file
		return "-"
	}
	switch wire.Now(now) {
	case wire.Same:
		return "the same"
	case wire.Changed:
		return st.yellow("a newer version")
	case wire.Gone:
		return st.red("gone")
	case wire.Unknown:
	}
	return "not known"
}

// showDelivered prints what a VM was given, as plan shows what it would be.
func showDelivered(w io.Writer, st style, given []state.Delivered) {
	known, compared := false, false
	for _, d := range given {
		known = known || d.Proven != state.Unknown
		compared = compared || d.Now != ""
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "ON THE HOST\tIN THE GUEST\tBYTES\tCHANNEL")
	if known {
		fmt.Fprint(t, "\tPROVEN")
	}
	if compared {
		fmt.Fprint(t, "\tSOURCE")
	}
	fmt.Fprintln(t)
	for _, d := range given {
		host := d.Host
		if host == "" {
			host = "(static)"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s", host, d.Guest, d.Bytes, d.Channel)
		if known {
			fmt.Fprintf(t, "\t%s", d.Proven)
		}
		if compared {
			fmt.Fprintf(t, "\t%s", sourceNow(st, d.Now))
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
}
