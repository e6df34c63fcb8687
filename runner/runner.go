// SPDX-License-Identifier: Apache-2.0

// Package runner is one VM's life: it reads the values, plans their delivery,
// launches the VM, says when it is ready, starts it anew when the guest
// reboots, and stops it. It knows no format in which a secret is stored.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// Outcome is how a VM's life ended when nothing went wrong.
type Outcome int

// The outcomes of Run.
const (
	Ended    Outcome = iota // the guest powered off or was stopped
	Rebooted                // the guest asked for a reboot and OneBoot was set
)

// Options is what Run needs to know.
type Options struct {
	Spec   *vm.Spec
	Driver hypervisor.Driver
	// Open opens the sources anew for every start of the guest. A source may be
	// credential.Versioned. An error that is a *RefusedError or a *FailedError is passed
	// on as it is, any other refuses the VM.
	Open     func(context.Context, *secret.Arena) (credential.Source, error)
	Recorder Recorder         // nil: a VM with secrets is not started
	Identity *launch.Identity // the user the VMM runs as; nil: our own
	Root     string           // the directory below which the VM's runtime directory is made
	OneBoot  bool             // return Rebooted instead of starting the guest anew
	Console  io.Writer        // the guest's serial output
	VMMLog   io.Writer        // what the VMM says
	Log      *slog.Logger     // what we say
	Notify   func(state string)
	Force    <-chan struct{} // closed: do not wait for the guest when stopping
	// Setup makes what the VM needs on this host, when nobody else can start it any
	// more, and returns what takes that away after the VM's end; nil: nothing is made.
	Setup func() (undo func() error, err error)
}

// Run starts the VM and returns when its life is over. Cancelling the context
// presses the power button. Errors are a *RefusedError or a *FailedError.
func Run(ctx context.Context, o Options) (Outcome, error) {
	if err := launch.Harden(); err != nil {
		return Ended, &FailedError{Op: "protect this process", Err: err}
	}
	claim, err := state.Acquire(o.Root, o.Spec.Name)
	if err != nil {
		return Ended, acquireError(o.Spec, err)
	}
	o.Notify = oneAtATime(o.Notify)
	r := &run{Options: o, dir: claim.Dir(), claim: claim}
	out, err := r.life(ctx)
	if cerr := claim.Close(); cerr != nil {
		r.Log.Warn("the runtime directory is left behind", "error", cerr)
	}
	return out, err
}

func acquireError(spec *vm.Spec, err error) error {
	var busy *state.BusyError
	if errors.As(err, &busy) {
		hint := busy.Hint()
		if busy.ByUnit && spec.Unit != "" {
			hint = "stop the running one first: systemctl stop " + spec.Unit
		}
		return refused(vm.Problem{Pos: vm.Pos{File: spec.File}, Message: busy.Error(), Hint: hint})
	}
	return &FailedError{Op: "start", Err: err}
}

// run is one VM's life in the making.
type run struct {
	Options
	dir   string
	claim *state.Claim
	now   state.Record // what runs, as it was written down last
}

// life is all of the guest's boots, with what is made for them around.
func (r *run) life(ctx context.Context) (Outcome, error) {
	if r.Setup == nil {
		return r.rounds(ctx)
	}
	undo, err := r.Setup()
	if err != nil {
		return Ended, err
	}
	defer func() {
		if err := undo(); err != nil {
			r.Log.Warn("what was made for the VM is left behind", "error", err, "hint", hintOf(err))
		}
	}()
	return r.rounds(ctx)
}

func (r *run) rounds(ctx context.Context) (Outcome, error) {
	var p pace
	for {
		began := time.Now()
		out, err := r.round(ctx)
		if err != nil || out != Rebooted || r.OneBoot {
			return out, err
		}
		if !r.again(ctx, p.next(time.Since(began))) {
			return Ended, nil
		}
	}
}

// round is one boot of the guest.
func (r *run) round(ctx context.Context) (Outcome, error) {
	g := r.newGuest()
	defer g.close()
	m, err := r.start(ctx, g)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return Ended, nil // stopped before it ran
		}
		return Ended, err
	}
	return r.follow(ctx, m, g)
}

// driverTime is more than a driver may take: a minute for a daemon beside the VMM and
// one for the VMM. It gives up by itself; a unit's TimeoutStartSec= is not to.
const driverTime = 150 * time.Second

// start brings the VM up. On error nothing of it is left running.
func (r *run) start(ctx context.Context, g *guest) (hypervisor.Machine, error) {
	r.Notify("STATUS=reading credentials")
	arena := secret.NewArena()
	defer arena.Close()
	p, err := prepare(ctx, r.Options, arena)
	if p != nil {
		for _, w := range p.Warnings {
			r.Log.Warn(w.Error(), "hint", w.Hint, "field", w.Field)
		}
	}
	if cerr := ctx.Err(); err != nil && cerr != nil {
		return nil, cerr // who stops it is not told what did not work because of that
	}
	if err != nil {
		r.recordRefusal(ctx, err)
		return nil, err
	}
	defer p.Close()
	r.Notify(fmt.Sprintf("STATUS=starting %s\nEXTEND_TIMEOUT_USEC=%d", r.Spec.Hypervisor, driverTime.Microseconds()))
	slow := time.AfterFunc(time.Second, func() {
		r.Log.Info("still starting " + r.Spec.Hypervisor + ": it reads the kernel and the initrd")
	})
	defer slow.Stop()
	m, err := r.Driver.Start(ctx, hypervisor.Launch{
		Spec: r.Spec, Info: p.Info, Plan: p.Plan,
		Deliver:  func(ctx context.Context) (*delivery.Payload, error) { return r.deliver(ctx, p) },
		Identity: r.Identity, RunDir: r.dir, Ports: g.ports(), Console: r.Console, Log: r.VMMLog,
	})
	if err != nil {
		return nil, &FailedError{Op: "start", Err: err}
	}
	r.report(p, m)
	r.record(p, m)
	g.plan = p.Plan
	return m, nil
}

// report says what runs and, a line each, what it was given.
func (r *run) report(p *Prepared, m hypervisor.Machine) {
	r.Log.Info(fmt.Sprintf("%s %s runs as process %d (%s; %s)", r.Spec.Hypervisor, p.Info.Version, m.PID(), p.Info.Why, m.Confinement()),
		"hypervisor", r.Spec.Hypervisor, "version", p.Info.Version, "pid", m.PID(), "accel", p.Info.Accel, "confinement", m.Confinement())
	for _, e := range p.Plan.Entries {
		if e.Kind == credential.OEMString {
			continue
		}
		from := e.Host
		if e.Kind == credential.Static {
			from = "static"
		}
		r.Log.Info(fmt.Sprintf("delivered %s → %s, %d bytes by %s", from, e.Guest, e.Len, e.Channel),
			"credential", e.Host, "guest", e.Guest, "bytes", e.Len, "channel", string(e.Channel))
	}
}

// follow waits for the end of a VM that runs.
func (r *run) follow(ctx context.Context, m hypervisor.Machine, g *guest) (Outcome, error) {
	g.runs()
	stop, stopped := ctx.Done(), make(chan struct{})
	up, late := g.up, g.late()
	end := func() {
		late, stop = nil, nil
		go func() { defer close(stopped); r.stop(m) }()
	}
	var lost error
	events := m.Events()
	for events != nil {
		select {
		case e, ok := <-events:
			if !ok {
				events = nil
				break
			}
			r.event(e)
			if e.Kind == hypervisor.EventShareLost {
				lost = shareLost(e)
			}
			if lost != nil && stop != nil {
				g.close()
				end()
			}
		case <-up:
			up, late = nil, nil
			g.proven()
		case <-late:
			if g.giveUp() {
				end()
			}
		case <-stop:
			g.close()
			end()
		}
	}
	if stop == nil {
		<-stopped
	}
	exit, err := m.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return Ended, &FailedError{Op: "run", Err: err}
	}
	g.upAtLast(up)
	if lost != nil && ctx.Err() == nil {
		return Ended, lost
	}
	if err := g.silent(ctx, exit); err != nil {
		return Ended, err
	}
	return r.outcome(ctx, exit)
}

// shareLost ends the VM: what the guest does in that share hangs for ever, so it
// would look alive and be of no use. The power button first, for its disks' sake.
func shareLost(e hypervisor.Event) error {
	return &FailedError{
		Op: "run", Err: errors.New(e.Detail + "; what the guest does in that share hangs, so the VM was ended"),
		Do: "its own words are above; start the VM again",
	}
}

func (r *run) event(e hypervisor.Event) {
	switch e.Kind {
	case hypervisor.EventPowerOff:
		r.Log.Info("the guest powers off")
		r.Notify("STATUS=the guest powers off")
	case hypervisor.EventPanic:
		r.Log.Warn("the guest's kernel panicked")
		r.Notify("STATUS=the guest's kernel panicked")
	case hypervisor.EventShareLost:
		r.Log.Error("ending the VM: " + e.Detail)
		r.Notify("STATUS=ending: a share is lost")
	case hypervisor.EventReboot, hypervisor.EventDelivered, hypervisor.EventRunning:
	}
}

func (r *run) outcome(ctx context.Context, exit hypervisor.Exit) (Outcome, error) {
	switch {
	case exit.Reboot && ctx.Err() == nil:
		return Rebooted, nil
	case exit.Clean || ctx.Err() != nil:
		return Ended, nil
	}
	how := exit.How()
	if exit.Detail != "" {
		how += ": " + exit.Detail
	}
	do := "start it again, or look for it in the kernel's log (out of memory?)"
	if exit.Detail != "" {
		do = "its own words are above; " + do
	}
	return Ended, &FailedError{Op: "run", Err: fmt.Errorf("%s ended by itself with %s", r.Spec.Hypervisor, how), Do: do}
}

// stop presses the power button, and is less patient step by step.
func (r *run) stop(m hypervisor.Machine) {
	r.Notify("STOPPING=1\nSTATUS=waiting for the guest to power off")
	r.Log.Info(fmt.Sprintf("stopping: pressing the power button, the guest has %s (a second signal does not wait)", r.Spec.StopTimeout))
	steps := []struct {
		do         func(context.Context) error
		wait       time.Duration
		what, next string
	}{
		{m.Shutdown, r.Spec.StopTimeout, "the guest did not power off", "asking " + r.Spec.Hypervisor + " to end"},
		{m.Quit, 5 * time.Second, r.Spec.Hypervisor + " did not end", "killing it"},
	}
	for _, s := range steps {
		began := time.Now()
		if r.ended(m, s.do, s.wait) {
			return
		}
		if r.impatient() {
			r.Log.Warn("not waiting any longer: " + s.next)
			continue
		}
		waited := s.wait
		if d := time.Since(began); d < waited { // it could not be asked
			waited = d.Round(time.Second)
		}
		r.Log.Warn(fmt.Sprintf("%s in %s: %s", s.what, waited, s.next))
	}
	if err := m.Kill(); err != nil {
		r.Log.Error("kill the hypervisor", "error", err)
	}
}

func (r *run) impatient() bool {
	select {
	case <-r.Force:
		return true
	default:
		return false
	}
}

// notAsked is how long a VMM that could not be asked to end has to end all the same.
const notAsked = 5 * time.Second

// ended asks once and reports whether the VMM is gone after at most wait.
func (r *run) ended(m hypervisor.Machine, ask func(context.Context) error, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	go func() {
		select {
		case <-r.Force:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := ask(ctx); err != nil && ctx.Err() == nil {
		// It may be on its way out, and is not waited for as long as one that was asked.
		r.Log.Warn(err.Error())
		late := time.AfterFunc(notAsked, cancel)
		defer late.Stop()
	}
	_, err := m.Wait(ctx)
	return err == nil
}
