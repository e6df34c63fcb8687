// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/hypervisor/console"
)

func (a *app) listCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "list the VMs that have a file or run",
		Long: `List every VM that has a file where names are looked up (/etc/vmcred/vms for
root, an ordinary user's $XDG_CONFIG_HOME/vmcred/vms), and every one that runs
from a file elsewhere. A file that cannot be used is listed as broken, with its
first problem; vmcred check shows them all.`,
		Example: `  vmcred list
  vmcred list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return a.list(c, asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) list(c *cobra.Command, asJSON bool) error {
	in, err := a.inspector()
	if err != nil {
		return err
	}
	vms, err := a.all(c.Context(), in)
	if err != nil {
		return err
	}
	for _, i := range vms {
		defer i.Close()
	}
	if asJSON {
		return a.printJSON(append([]*inspected{}, vms...))
	}
	if len(vms) == 0 {
		dir, err := config.Dir(a.uid, a.getenv)
		if err != nil {
			return refusedError(err)
		}
		fmt.Fprintf(a.out, "there are no VMs in %s\n  begin with one: vmcred init NAME\n", console.QuotePath(dir))
		return nil
	}
	a.listTable(vms)
	return nil
}

func (a *app) listTable(vms []*inspected) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "VM\tSTATE\tHYPERVISOR\tCREDENTIALS\tAUTOSTART")
	if a.uid == 0 {
		fmt.Fprint(w, "\tUNIT")
	}
	fmt.Fprintln(w)
	for _, i := range vms {
		credentials, autostart := "-", "no"
		if i.spec != nil {
			credentials = strconv.Itoa(i.Declared)
		} else if len(i.Delivered) > 0 {
			credentials = strconv.Itoa(len(i.Delivered))
		}
		if i.Autostart {
			autostart = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", console.OneLine(i.VM), i.State, orDash(i.Hypervisor), credentials, autostart)
		if a.uid == 0 {
			fmt.Fprintf(w, "\t%s", console.OneLine(i.Unit))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	st := styleOf(a.stdout, a.getenv)
	for _, i := range vms {
		if fatal := i.problems.Fatal(); len(fatal) > 0 {
			showProblem(a.out, st, fatal[0])
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
