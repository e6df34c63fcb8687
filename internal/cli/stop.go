// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/state"
)

// hurry is how long after a signal the next one is another: the runner takes two
// that come together for one.
const hurry = oneSignal + 100*time.Millisecond

func (a *app) stopCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "stop VM",
		Short: "stop a VM: press its power button, and wait until it is gone",
		Long: `Stop a VM: press its power button, and wait until it is gone. A VM that runs as
a unit is stopped by systemctl stop; a plain run is told by a signal to the
vmcred run that started it. The guest has stop-timeout: to power off; with
--force it has no time.

Exit status: 0 it does not run any more, or did not; 1 it could not be stopped;
78 there is no such VM.`,
		Example: `  vmcred stop test-vm
  vmcred stop test-vm --force`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE:              func(c *cobra.Command, args []string) error { return a.stop(c.Context(), args[0], force) },
	}
	c.Flags().BoolVar(&force, "force", false, "do not wait for the guest to power off")
	return c
}

func (a *app) stop(ctx context.Context, arg string, force bool) error {
	in, i, err := a.named(ctx, arg)
	if err != nil {
		return err
	}
	defer i.Close()
	switch {
	case i.found.Handle() != nil:
		err = a.stopRun(ctx, i, force)
	case i.Systemd != nil && i.Systemd.Up():
		err = a.stopUnit(ctx, in, i, force)
	case i.State.runs():
		return &runner.FailedError{
			Op: "stop " + i.VM, Err: errors.New("who runs it cannot be told: " + i.Detail),
			Do: "try again in a moment, or look for its vmcred run",
		}
	default:
		fmt.Fprintf(a.out, "%s does not run\n", i.VM)
		if i.State == dead {
			fmt.Fprintf(a.out, "  %s\n  %s\n", i.Detail, i.Hint)
		}
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s has stopped\n", i.VM)
	return nil
}

// stopRun tells the runner, and waits for its end: it ends after its VM.
func (a *app) stopRun(ctx context.Context, i *inspected, force bool) error {
	h := i.found.Handle()
	if err := terminate(h); err != nil {
		return stopError(i, err)
	}
	slow := time.AfterFunc(time.Second, func() {
		fmt.Fprintf(a.stderr, "vmcred: waiting for %s to end%s\n", i.VM, patienceOf(i, force))
	})
	defer slow.Stop()
	for force {
		// The second signal is the one that does not wait, and the runner does not
		// take one that comes too soon.
		wait, cancel := context.WithTimeout(ctx, hurry)
		err := h.Wait(wait)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		if err := terminate(h); err != nil {
			return stopError(i, err)
		}
	}
	if err := h.Wait(ctx); err != nil {
		return stopError(i, err)
	}
	return nil
}

// terminate sends SIGTERM. A runner that has ended meanwhile is what was wanted.
func terminate(h *state.Handle) error {
	if err := h.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func patienceOf(i *inspected, force bool) string {
	if force || i.spec == nil {
		return ""
	}
	return fmt.Sprintf(": the guest has %s to power off (--force does not wait)", i.spec.StopTimeout)
}

func stopError(i *inspected, err error) error {
	e := &runner.FailedError{Op: "stop " + i.VM, Err: err}
	switch {
	case errors.Is(err, context.Canceled):
		e.Err, e.Do = errors.New("not waiting any longer"), "it was told to stop, and may still be at it: vmcred status "+i.VM
	case errors.Is(err, syscall.EPERM):
		e.Do = "another user started it: as that user, or as root"
	}
	return e
}

// stopUnit leaves it to systemd, which does not start the unit again then.
func (a *app) stopUnit(ctx context.Context, in *inspector, i *inspected, force bool) error {
	s := in.systemd
	if force {
		if err := s.BeginStop(ctx, i.Unit, a.stdout, a.stderr); err != nil {
			return stopError(i, err)
		}
		select {
		case <-ctx.Done():
			return stopError(i, ctx.Err())
		case <-time.After(hurry):
		}
		now, err := s.Show(ctx, i.Unit)
		if err != nil {
			return stopError(i, err)
		}
		if now[i.Unit].Active == "deactivating" {
			// It may end before the signal comes: the stop below says what counts.
			_ = s.Terminate(ctx, i.Unit, nil, nil)
		}
	}
	if err := s.Stop(ctx, i.Unit, a.stdout, a.stderr); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stopError(i, err)
	}
	return nil
}
