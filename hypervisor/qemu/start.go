// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/qemu/qmp"
	"github.com/vmcred/vmcred/hypervisor/virtiofs"
	"github.com/vmcred/vmcred/internal/launch"
)

// Start starts the VM and returns when the guest runs. It waits for QEMU as
// long as the context and Options allow. The error is vm.Problems where the
// VMM's user may not open what it must, else a
// *hostcheck.InUseError, an *Error with QEMU's last words, or the context's.
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
	l                hypervisor.Launch
	console          *console.Console
	qmp              net.Conn
	stderr           *os.File
	qmpEnd, stderrIn *os.File // the child's ends
	shares           *virtiofs.Servers
	shareConns       []*os.File // the child's, too
	vsock            *link
	feed             *feed
	machine          *machine // from here on it owns console, qmp, stderr, shares and vsock
}

func (s *starter) start(ctx context.Context, d *Driver) error {
	if err := s.open(); err != nil {
		return err
	}
	if err := s.openShares(ctx, d); err != nil {
		return err
	}
	if err := s.openVsock(ctx, d); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // release no value for a start that nobody wants any more
	}
	payload, err := s.l.Deliver(ctx)
	if err != nil {
		return err
	}
	if s.feed, err = newFeed(payload, s.l.Plan, s.l.Identity); err != nil {
		return withHint(&Error{Message: "the credentials' memory files", Err: err})
	}
	proc, err := s.spawn()
	if err != nil {
		return withHint(&Error{Message: "QEMU's process", Err: err})
	}
	s.closeChildEnds()
	s.machine = newMachine(proc, s.qmp, s.console, console.Listen(s.stderr, s.l.Log, "QEMU's messages"), s.shares, s.vsock)
	limited, cancel := context.WithTimeout(ctx, d.o.StartTimeout)
	defer cancel()
	return s.converse(limited)
}

// open makes all that QEMU inherits but the values.
func (s *starter) open() error {
	var err error
	if s.console, err = console.Open(s.l.Spec.Console, s.l.RunDir, s.l.Identity, s.l.Console); err != nil {
		return err
	}
	if s.qmp, s.qmpEnd, err = console.SocketPair("qmp"); err != nil {
		return withHint(&Error{Message: "QEMU's control connection", Err: err})
	}
	if s.stderr, s.stderrIn, err = os.Pipe(); err != nil {
		return withHint(&Error{Message: "QEMU's standard error", Err: err})
	}
	return nil
}

// openShares starts the shares' daemons, and connects to each for QEMU.
func (s *starter) openShares(ctx context.Context, d *Driver) error {
	var err error
	s.shares, err = virtiofs.Start(ctx, s.l.Spec.Shares, virtiofs.StartOptions{
		Options: virtiofs.Options{CacheDir: d.o.CacheDir}, RunDir: s.l.RunDir, VMM: s.l.Identity, Log: s.l.Log,
	})
	if err != nil {
		return err
	}
	for i := range s.l.Spec.Shares {
		conn, err := s.shares.Dial(i)
		if err != nil {
			return err
		}
		s.shareConns = append(s.shareConns, conn)
	}
	return nil
}

// openVsock waits for a daemon no longer than for QEMU itself.
func (s *starter) openVsock(ctx context.Context, d *Driver) error {
	limited, cancel := context.WithTimeout(ctx, d.o.StartTimeout)
	defer cancel()
	var err error
	s.vsock, err = d.openLink(limited, s.l)
	return err
}

// spawn starts QEMU with an empty environment and nothing but what it is given.
func (s *starter) spawn() (*launch.Process, error) {
	c := &launch.Command{
		Path: s.l.Info.Path, Env: []string{}, Dir: "/",
		Stdout: s.stderrIn, Stderr: s.stderrIn,
		Identity: s.l.Identity,
	}
	donate := func(name string, f *os.File) string { return strconv.Itoa(c.Donate(name, f)) }
	ds := descriptors{qmp: donate("qmp", s.qmpEnd)}
	if f := s.console.Child(); f != nil {
		ds.console = donate("console", f)
	}
	for _, f := range s.shareConns {
		ds.shares = append(ds.shares, donate(f.Name(), f))
	}
	if f := s.vsock.child; f != nil {
		ds.vsock, ds.way = donate("vsock", f), s.vsock.way
	}
	for _, m := range s.feed.smbios {
		ds.smbios = append(ds.smbios, donate("smbios", m.File()))
	}
	for _, m := range s.feed.fwCfg {
		ds.fwCfg = append(ds.fwCfg, item{m.key, donate(m.key, m.File())})
	}
	c.Args = arguments(s.l.Spec, s.l.Info, ds)
	return c.Start()
}

func (s *starter) closeChildEnds() {
	for _, f := range append(s.shareConns, s.qmpEnd, s.stderrIn) {
		if f != nil {
			_ = f.Close()
		}
	}
	s.qmpEnd, s.stderrIn, s.shareConns = nil, nil, nil
	s.vsock.closeChild()
}

// converse brings QEMU from its greeting to a running guest. The greeting comes
// from a thread of its own while QEMU is still opening its fw_cfg files and the
// kernel; commands are answered only by the main loop, after all of that. So it
// is the first answer that says the values are in.
func (s *starter) converse(ctx context.Context) error {
	m := s.machine
	if _, err := m.qmp.Greeting(ctx); err != nil {
		return err
	}
	if _, err := m.qmp.Execute(ctx, "qmp_capabilities"); err != nil {
		return err
	}
	if err := s.feed.release(); err != nil {
		return err
	}
	m.Emit(hypervisor.EventDelivered, "")
	if err := m.vsock.listen(s.l); err != nil {
		return err
	}
	if _, err := m.qmp.Execute(ctx, "cont"); err != nil {
		return err
	}
	m.Emit(hypervisor.EventRunning, "")
	return nil
}

// undo leaves nothing behind and says why, with QEMU's last words.
func (s *starter) undo(ctx context.Context, err error) error {
	s.closeChildEnds()
	m := s.machine
	if m == nil {
		s.closeOurEnds()
		return errors.Join(err, s.feed.release())
	}
	ended := errors.Is(err, qmp.ErrClosed)
	if ended {
		console.WaitFor(m.Done(), grace) // it is on its way out, with a status of its own
	}
	_ = m.Kill()
	exit, _ := m.Wait(ctx) // it is over, whatever the context says
	if rerr := s.feed.release(); rerr != nil {
		err = errors.Join(err, rerr)
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return &Error{Message: "QEMU did not answer" + tail(m.said.All()), Err: cmp.Or(ctx.Err(), err)}
	case m.shares.Fault() != nil: // QEMU only says that the other side hung up
		return m.shares.Fault()
	case ended:
		return withHint(&Error{Message: "QEMU did not start (" + exit.How() + ")" + tail(m.said.All())})
	}
	if refused := (*qmp.CommandError)(nil); errors.As(err, &refused) {
		refused.Desc = console.OneLine(refused.Desc) // its own words, whatever they are
	}
	return withHint(&Error{Message: "QEMU did not start the guest", Err: err})
}

func (s *starter) closeOurEnds() {
	s.shares.Finish(0)
	s.vsock.finish()
	if s.console != nil {
		s.console.Finish(grace)
	}
	if s.qmp != nil {
		_ = s.qmp.Close()
	}
	if s.stderr != nil {
		_ = s.stderr.Close()
	}
}

func tail(words string) string {
	if words == "" {
		return ", and said nothing"
	}
	return ": " + words
}

// withHint adds what to do about what QEMU or the kernel says most often.
func withHint(e *Error) *Error {
	text := e.Error()
	for _, h := range []struct{ says, cure string }{
		{syscall.EMFILE.Error(), "each credential takes a descriptor: raise LimitNOFILE= of the unit, or `ulimit -n`"},
		{"Too many open files", "each credential takes a descriptor: raise LimitNOFILE= of the unit, or `ulimit -n`"},
		{syscall.ENFILE.Error(), "the whole system is out of descriptors: see fs.file-max"},
		{`Failed to get "write" lock`, "another process uses that disk, perhaps another VM"},
		{`Failed to get shared "write" lock`, "another process writes to that disk, perhaps another VM"},
		{"Is another process using the image", "another process has that disk, perhaps another VM"},
		{"Cannot allocate memory", "the host has not that much memory to give"},
		{"unable to set guest cid", "another VM of this host has that number: give this one another, vsock: {cid: …}"},
		{"initrd is too large", "give the VM more: memory:"},
		{"system firmware", "give a firmware's code as its package has it, as OVMF_CODE_4M.fd of Debian's ovmf"},
		{"without PVH ELF Note", "give a bzImage (vmlinuz-…), or a kernel built with CONFIG_PVH"},
	} {
		if strings.Contains(text, h.says) {
			e.Cure = h.cure
			break
		}
	}
	return e
}
