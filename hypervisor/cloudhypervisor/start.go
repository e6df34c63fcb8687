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
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/hypervisor/vsock"
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
// where the VMM's user may not open what it must, else a *hostcheck.InUseError, a
// *hypervisor.Error with the VMM's last words, or the context's.
func (d *Driver) Start(ctx context.Context, l hypervisor.Launch) (hypervisor.Machine, error) {
	if err := hostcheck.BeforeStart(l.Spec, d.CheckAccess(l.Spec, l.Info, l.Identity)); err != nil {
		return nil, err
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
	host    *vsock.Host       // where the VMM has its sockets, nil if it makes none
	shares  *virtiofs.Servers // nil without shares
	paths   paths             // what these are in the VMM
	taps    [][]*os.File      // for each interface one for each pair of queues
	theirs  []*os.File        // the VMM's ends: API listener, events, words
	machine *machine          // from here on it owns all but the last three
}

func (s *starter) start(ctx context.Context, d *Driver) error {
	limited, cancel := context.WithTimeout(ctx, d.o.StartTimeout)
	defer cancel()
	if err := s.open(ctx, d); err != nil {
		return err
	}
	proc, err := s.spawn()
	if err != nil {
		return err
	}
	s.closeTheirs()
	watch := newCrashWatch()
	words := console.ListenFor(s.words, s.l.Log, "cloud-hypervisor's messages", watch.line)
	s.machine = newMachine(proc, s.ends(words), s.events, watch.crashed)
	return s.converse(limited)
}

func (s *starter) ends(words *console.Words) ends {
	return ends{client: s.client, console: s.console, words: words, host: s.host, shares: s.shares}
}

// open makes all that the VMM inherits.
func (s *starter) open(ctx context.Context, d *Driver) error {
	var err error
	if s.console, err = console.OpenPipe(s.l.Spec.Console, s.l.Identity, s.l.Console); err != nil {
		return err
	}
	if err := s.openTaps(); err != nil {
		return err
	}
	if err := s.meet(ctx, d); err != nil {
		return err
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

// meet makes what VMM and host meet by beside the API.
func (s *starter) meet(ctx context.Context, d *Driver) error {
	spec := s.l.Spec
	var err error
	if spec.Vsock != nil && spec.Vsock.Socket == "" || spec.Console.Mode == vm.ConsoleSocket {
		if s.host, err = vsock.Open(s.l.RunDir, s.l.Identity, s.l.Ports); err != nil {
			return &hypervisor.Error{Message: "the host's end of the vsock", Err: err}
		}
	}
	if v := spec.Vsock; v != nil && v.Socket != "" {
		if err := vsock.RemoveStale(v.Socket); err != nil {
			return &hypervisor.Error{Message: "the vsock's socket", Err: err}
		}
	}
	s.shares, err = virtiofs.Start(ctx, spec.Shares, virtiofs.StartOptions{
		Options: virtiofs.Options{CacheDir: d.o.CacheDir}, RunDir: s.l.RunDir, VMM: s.l.Identity, Log: s.l.Log,
	})
	return err
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
		s.paths.serial = serialPath(c.Donate("console", f))
	}
	if f := s.host.File(); f != nil {
		s.inHost(c.Donate("sockets", f))
	}
	if f := s.shares.Directory(); f != nil {
		s.inShares(c.Donate("shares", f))
	}
	return c.Start()
}

// inHost: these two sockets are made by the VMM.
func (s *starter) inHost(fd int) {
	if v := s.l.Spec.Vsock; v != nil && v.Socket == "" {
		s.paths.vsock = vsock.Socket(fd)
	}
	if s.l.Spec.Console.Mode == vm.ConsoleSocket {
		s.paths.console = vsock.InDir(fd, hypervisor.ConsoleSocket)
	}
}

func (s *starter) inShares(fd int) {
	for i := range s.l.Spec.Shares {
		s.paths.shares = append(s.paths.shares, s.shares.SocketPath(i, fd))
	}
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
	m.Emit(hypervisor.EventDelivered, "")
	if err := s.addTaps(ctx); err != nil {
		return err
	}
	if err := m.client.Do(ctx, "vm.boot"); err != nil && !m.ranOut(err) {
		return err
	}
	m.Emit(hypervisor.EventRunning, "")
	return nil
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
	body, err := createBody(configOf(s.l.Spec, parseInfo(s.l.Info), s.paths), p.Strings)
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
		console.WaitFor(m.Done(), grace) // it is on its way out, with a status of its own
	}
	ended = ended && m.State() != nil
	fault := s.shares.Fault()
	_ = m.Kill()
	exit, _ := m.Wait(ctx) // it is over, whatever the context says
	var refused *api.StatusError
	switch {
	case fault != nil && ctx.Err() == nil: // who stops it is not told what ended because of that
		return fault
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return &hypervisor.Error{Message: "cloud-hypervisor did not answer" + tail(m.words.All()), Err: cmp.Or(ctx.Err(), err)}
	case ended:
		return &hypervisor.Error{Message: "cloud-hypervisor did not start (" + exit.How() + ")" + tail(m.words.All())}
	case errors.As(err, &refused):
		refused.Text = console.OneLine(refused.Text) // its own words, whatever they are
	}
	cure := ""
	if refused != nil && s.l.Spec.CloudHypervisor.Extra != nil {
		cure = "look at " + extraField + ": a key that is missing or of the wrong type is told by its status alone, as its words could hold a value"
	}
	return &hypervisor.Error{Message: "cloud-hypervisor did not start the guest", Err: err, Cure: cure}
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
	s.shares.Finish(0)
	_ = s.host.Close()
}

func tail(words string) string {
	if words == "" {
		return ", and said nothing"
	}
	return ": " + words
}
