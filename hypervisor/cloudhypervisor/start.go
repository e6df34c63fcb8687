// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/api"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// The numbers of the descriptors that argv names.
const (
	apiFD    = 3
	eventsFD = 4
)

// serialPath is how the VMM opens its end of the console's pipe: it takes a path
// only, and this one is that of a descriptor it has.
func serialPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// Command returns the argument vector Start uses, the VMM's path first, with
// "<fd>" for each inherited descriptor. The VM is not on it.
func (d *Driver) Command(_ *vm.Spec, info hypervisor.Info, _ delivery.Plan) []string {
	return append([]string{info.Path}, arguments("<fd>", "<fd>")...)
}

// arguments never hold -v: it would log the whole configuration.
func arguments(apiFD, eventsFD string) []string {
	return []string{"--api-socket", "fd=" + apiFD, "--event-monitor", "fd=" + eventsFD}
}

// Start starts the VM and returns when the guest runs. The error is vm.Problems
// where the VMM's user may not open what it must, else a *hypervisor.Error with
// the VMM's last words, or the context's.
func (d *Driver) Start(ctx context.Context, l hypervisor.Launch) (hypervisor.Machine, error) {
	if ps := vm.Problems(d.CheckAccess(l.Spec, l.Info, l.Identity)).Fatal(); len(ps) > 0 {
		return nil, ps
	}
	s := &starter{l: l}
	err := s.start(ctx, d)
	if err == nil {
		return s.machine, nil
	}
	return nil, s.undo(ctx, err)
}

// starter is one start in the making: all that must be undone if it fails.
type starter struct {
	l       hypervisor.Launch
	console *console.Console
	client  *api.Client
	events  *os.File
	words   *os.File
	serial  string // the console's path in the VMM, empty without one
	taps    []*os.File
	theirs  []*os.File // the VMM's ends: API listener, events, words
	machine *machine   // from here on it owns the first four
}

func (s *starter) start(ctx context.Context, d *Driver) error {
	limited, cancel := context.WithTimeout(ctx, d.o.StartTimeout)
	defer cancel()
	if err := s.open(); err != nil {
		return err
	}
	proc, err := s.spawn()
	if err != nil {
		return err
	}
	s.closeTheirs()
	watch := newCrashWatch(s.l.Log)
	words := console.Listen(s.words, watch, "cloud-hypervisor's messages")
	s.machine = newMachine(proc, s.client, s.console, s.events, words, watch.crashed)
	return s.converse(limited)
}

// open makes all that the VMM inherits.
func (s *starter) open() error {
	var err error
	if s.console, err = console.OpenPipe(s.l.Spec.Console, s.l.Identity, s.l.Console); err != nil {
		return err
	}
	for _, nic := range s.l.Spec.Interfaces {
		tap, err := openTap(nic.ID)
		if err != nil {
			return err
		}
		s.taps = append(s.taps, tap)
	}
	listener, ours, err := connected(s.l.RunDir)
	if err != nil {
		return &hypervisor.Error{Message: "the connection to cloud-hypervisor's API", Err: err}
	}
	s.client = api.New(ours)
	s.theirs = append(s.theirs, listener)
	for _, end := range []**os.File{&s.events, &s.words} {
		r, w, err := os.Pipe()
		if err != nil {
			return &hypervisor.Error{Message: "a pipe from cloud-hypervisor", Err: err}
		}
		*end, s.theirs = r, append(s.theirs, w)
	}
	return nil
}

func (s *starter) spawn() (*launch.Process, error) {
	api, events, words := s.theirs[0], s.theirs[1], s.theirs[2]
	c := &launch.Command{
		Path: s.l.Info.Path, Args: arguments(strconv.Itoa(apiFD), strconv.Itoa(eventsFD)), Env: []string{}, Dir: "/",
		Stdout: words, Stderr: words, Identity: s.l.Identity,
	}
	c.Donate("API socket", api)
	c.Donate("events", events)
	if f := s.console.Child(); f != nil {
		s.serial = serialPath(c.Donate("console", f))
	}
	return c.Start()
}

func (s *starter) closeTheirs() {
	for _, f := range s.theirs {
		_ = f.Close()
	}
	s.theirs = nil
}

// converse brings the VMM from its first answer to a running guest. After a
// create that failed it is not asked to boot: it may have kept the half of it.
func (s *starter) converse(ctx context.Context) error {
	m := s.machine
	if _, err := m.client.Get(ctx, "vmm.ping"); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // release no value for a start that nobody wants any more
	}
	if err := s.create(ctx); err != nil {
		return err
	}
	m.emit(hypervisor.EventDelivered, "")
	if err := s.addTaps(ctx); err != nil {
		return err
	}
	if err := m.client.Do(ctx, "vm.boot"); err != nil && !m.ranOut(err) {
		return err
	}
	m.emit(hypervisor.EventRunning, "")
	return nil
}

// addTaps gives the VM its taps, which this process has opened.
func (s *starter) addTaps(ctx context.Context) error {
	for i, nic := range s.l.Spec.Interfaces {
		body, err := addNet(i, nic)
		if err != nil {
			return err
		}
		if err := s.machine.client.PutFiles(ctx, "vm.add-net", body, s.taps[i]); err != nil {
			return err
		}
	}
	s.closeTaps()
	return nil
}

func (s *starter) closeTaps() {
	for _, f := range s.taps {
		_ = f.Close()
	}
	s.taps = nil
}

// create hands the VM over with its strings, and wipes them here.
func (s *starter) create(ctx context.Context) error {
	payload, err := s.l.Deliver(ctx)
	if err != nil {
		return err
	}
	body, err := s.body(payload)
	if err == nil {
		err = s.machine.client.Put(ctx, "vm.create", body)
	}
	return errors.Join(err, payload.Close())
}

func (s *starter) body(p *delivery.Payload) (secret.Rope, error) {
	planned := 0
	for _, e := range s.l.Plan.Entries {
		if e.Channel == delivery.SMBIOS {
			planned++
		}
	}
	if len(p.Strings) != planned || len(p.FwCfg) > 0 {
		return nil, fmt.Errorf("the values are %d strings and %d items, planned were %d and none", len(p.Strings), len(p.FwCfg), planned)
	}
	body, err := createBody(configOf(s.l.Spec, parseInfo(s.l.Info), paths{serial: s.serial}), p.Strings)
	if err == nil && body.Len() > bodyMax {
		err = fmt.Errorf("a request of %d bytes, and cloud-hypervisor takes %d", body.Len(), bodyMax)
	}
	return body, err
}

// undo leaves nothing behind and says why, with the VMM's last words.
func (s *starter) undo(ctx context.Context, err error) error {
	s.closeTheirs()
	s.closeTaps()
	m := s.machine
	if m == nil {
		s.closeOurs()
		return err
	}
	ended := errors.Is(err, api.ErrClosed)
	if ended {
		console.WaitFor(m.proc.Done(), grace) // it is on its way out, with a status of its own
	}
	ended = ended && m.proc.State() != nil
	_ = m.Kill()
	var refused *api.StatusError
	switch {
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return &hypervisor.Error{Message: "cloud-hypervisor did not answer" + tail(m.words.All()), Err: cmp.Or(ctx.Err(), err)}
	case ended:
		return &hypervisor.Error{Message: "cloud-hypervisor did not start (" + m.exit.how() + ")" + tail(m.words.All())}
	case errors.As(err, &refused):
		refused.Text = console.OneLine(refused.Text) // its own words, whatever they are
	}
	return &hypervisor.Error{Message: "cloud-hypervisor did not start the guest", Err: err}
}

func (s *starter) closeOurs() {
	if s.console != nil {
		s.console.Finish(grace)
	}
	if s.client != nil {
		_ = s.client.Close()
	}
	for _, f := range []*os.File{s.events, s.words} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func tail(words string) string {
	if words == "" {
		return ", and said nothing"
	}
	return ": " + words
}
