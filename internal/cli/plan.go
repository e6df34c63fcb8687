// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

func (a *app) planCommand() *cobra.Command {
	var (
		sources       sourceFlags
		asJSON, print bool
	)
	c := &cobra.Command{
		Use:   "plan VM",
		Short: "show what would be handed over, by which channel; starts nothing",
		Long: `Show what would be handed over: each credential's name on the host and in the
guest, its size and the channel it goes by. It reads the values to learn how
long they are, shows none, and starts nothing.`,
		Example: `  vmcred plan test-vm
  vmcred plan test-vm --credentials /run/my-secrets --json
  vmcred plan test-vm --command`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE: func(c *cobra.Command, args []string) error {
			if asJSON && print {
				return &usageError{command: c, err: errors.New("--json and --command are two outputs: ask for one")}
			}
			return a.plan(c, args[0], &sources, asJSON, print)
		},
	}
	sources.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&print, "command", false, "print the hypervisor's command line; values are not on it")
	return c
}

func (a *app) plan(c *cobra.Command, arg string, sources *sourceFlags, asJSON, command bool) error {
	if err := launch.Harden(); err != nil {
		return err
	}
	spec, warnings, err := a.load(arg)
	if err != nil {
		return err
	}
	o, err := a.options(c, spec, sources)
	if err != nil {
		return err
	}
	o.Identity, warnings = a.lookIdentity(spec, warnings)
	arena := secret.NewArena()
	defer arena.Close()
	p, err := runner.Prepare(c.Context(), o, arena)
	if p != nil {
		warnings = append(warnings, p.Warnings...)
	}
	if err != nil {
		a.showProblems(a.stderr, warnings)
		return err
	}
	defer p.Close()
	switch {
	case command:
		fmt.Fprintln(a.out, quoteCommand(o.Driver.Command(spec, p.Info, p.Plan)))
	case asJSON:
		if err := planJSON(a.out, spec, p, warnings); err != nil {
			return err
		}
		return nil
	default:
		a.planTable(spec, p)
	}
	a.showProblems(a.stderr, warnings)
	return nil
}

// planTable prints the plan for people.
func (a *app) planTable(spec *vm.Spec, p *runner.Prepared) {
	st := styleOf(a.stdout, a.getenv)
	fmt.Fprintf(a.out, "%s: %s %s, %s\n", st.bold(spec.Name), spec.Hypervisor, p.Info.Version, p.Info.Why)
	a.planEntries(p)
}

// planEntries prints what goes where, and how full that is.
func (a *app) planEntries(p *runner.Prepared) {
	if len(p.Plan.Entries) == 0 {
		fmt.Fprintln(a.out, "no credentials: nothing is handed over")
		return
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ON THE HOST\tIN THE GUEST\tBYTES\tCHANNEL")
	for _, e := range p.Plan.Entries {
		host, guest := e.Host, e.Guest
		switch e.Kind {
		case credential.Static:
			host = "(static)"
		case credential.OEMString:
			host, guest = "(static)", "(OEM string)"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", host, guest, e.Len, e.Channel)
	}
	_ = w.Flush()
	for _, u := range usage(p.Plan) {
		fmt.Fprintln(a.out, u)
	}
}

// usage is a line for each channel in use: how much of it, and what the guest needs.
func usage(p delivery.Plan) []string {
	var out []string
	for _, l := range p.Limits {
		if l.Items == 0 {
			continue
		}
		line := fmt.Sprintf("%s: %s", l.Channel, filled(l.Bytes, l.BytesMax, "byte"))
		if l.ItemsMax > 0 {
			line += ", " + filled(l.Items, l.ItemsMax, "item")
		}
		if l.Needs != "" {
			line += "; the guest needs " + l.Needs
		}
		out = append(out, line)
	}
	return out
}

// filled leaves out a limit that there is not.
func filled(n, most int, what string) string {
	if most == 0 {
		return count(n, what)
	}
	return fmt.Sprintf("%d of %s", n, count(most, what))
}

func planJSON(w io.Writer, spec *vm.Spec, p *runner.Prepared, warnings vm.Problems) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		VM         string          `json:"vm"`
		Hypervisor string          `json:"hypervisor"`
		Info       hypervisor.Info `json:"info"`
		Plan       delivery.Plan   `json:"plan"`
		Warnings   []problemJSON   `json:"warnings"`
	}{spec.Name, spec.Hypervisor, p.Info, p.Plan, withSeverity(warnings)})
}

// quoteCommand quotes an argument vector for a POSIX shell.
func quoteCommand(argv []string) string {
	quoted := make([]string, len(argv))
	for i, s := range argv {
		if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-<>") != "" ||
			strings.ContainsAny(s, "<>") {
			s = "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
		quoted[i] = s
	}
	return strings.Join(quoted, " ")
}
