// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/runner"
)

func (a *app) restartCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restart VM",
		Short: "start a VM's unit anew, with the values of now, and show which changed",
		Long: `Start a VM's unit anew, with the values of now, and show which changed: the power
button, the guest's time (stop-timeout:), a new start. It returns when the VM is ready.
Whether a value is another one is known by its digest in the audit log.

Exit status: 0 it runs; 1 it could not be restarted; 78 it is no unit's VM.`,
		Example:           `  vmcred restart test-vm`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE:              func(c *cobra.Command, args []string) error { return a.restart(c.Context(), args[0]) },
	}
}

func (a *app) restart(ctx context.Context, arg string) error {
	in, i, err := a.named(ctx, arg)
	if err != nil {
		return err
	}
	defer i.Close()
	switch {
	case i.found.Handle() != nil:
		return refusedError(&hinted{message: "it is a plain run, which only its own terminal can start again", hint: "vmcred stop " + i.VM + ", then vmcred run " + i.VM})
	case in.systemd == nil:
		return refusedError(&hinted{message: "only root's VMs have units", hint: "vmcred stop " + i.VM + ", then vmcred run " + i.VM})
	case i.State == broken:
		return &runner.RefusedError{Problems: i.problems}
	}
	before, err := a.released(ctx, i.VM, i.Unit)
	if err != nil {
		return err
	}
	if err := in.systemd.Restart(ctx, i.Unit, a.stdout, a.stderr); err != nil {
		return &runner.FailedError{Op: "restart " + i.VM, Err: err, Do: "systemctl status " + i.Unit}
	}
	after, err := a.released(ctx, i.VM, i.Unit)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s runs, as %s\n", i.VM, i.Unit)
	a.showChanges(before, after)
	return nil
}

// released are the last releases to a VM's unit, by name on the host.
func (a *app) released(ctx context.Context, name, unit string) (map[string]audit.Record, error) {
	out := map[string]audit.Record{}
	p, err := a.auditPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
		return out, nil // nothing was ever released
	}
	r, dir, _, err := a.reader(p)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for line, err := range r.Lines() {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		rec := line.Record
		if line.Err == nil && rec.Op == audit.Release && rec.VM == name && rec.By != nil && rec.By.Unit == unit && rec.Credential != nil {
			out[rec.Credential.Host] = rec
		}
	}
	return out, nil
}

// showChanges compares what a unit was given with what it had.
func (a *app) showChanges(before, after map[string]audit.Record) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	st := styleOf(a.stdout, a.getenv)
	fmt.Fprintln(w, "ON THE HOST\tIN THE GUEST\tBYTES\tVALUE")
	rows := 0
	for _, host := range slices.Sorted(maps.Keys(after)) {
		now, old := after[host], before[host]
		if now.Seq == old.Seq {
			continue // not given this time
		}
		what := st.yellow("changed")
		switch {
		case old.Seq == 0:
			what = "given for the first time"
		case now.Digest == old.Digest:
			what = "the same"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", host, now.Credential.Guest, now.Credential.Bytes, what)
		rows++
	}
	if rows == 0 {
		fmt.Fprintln(a.out, "it was given no credentials that are on record")
		return
	}
	_ = w.Flush()
}
