// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/config"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// status is what the VM's unit was given in its present start, and what its sources have
// by now.
func (b *Broker) status(ctx context.Context, p *peer.Peer, name string) *wire.Answer {
	if p.UID != 0 {
		return &wire.Answer{Problems: problem("", "only root may ask what a VM was given", "become root: sudo vmcred status "+clean(name))}
	}
	if err := config.CheckName(name); err != nil {
		return &wire.Answer{Problems: problem("", err.Error(), hintOf(err))}
	}
	spec, ps := b.vms.named(name)
	if len(ps) > 0 {
		return &wire.Answer{Problems: ps}
	}
	answer := &wire.Answer{}
	invocation, err := b.o.Invocation(spec.Unit)
	if err != nil {
		return answer // it does not run
	}
	g, err := b.starts.state.load(invocation)
	if err != nil {
		return answer // it was given nothing
	}
	s, ps := b.settings()
	for _, d := range g.Delivered {
		d.Now = wire.Unknown
		if c := declared(spec, d.Host); c == nil {
			d.Now = wire.Gone
		} else if len(ps) == 0 {
			d.Now = now(ctx, s, c, &d)
		}
		answer.Delivered = append(answer.Delivered, d)
	}
	return answer
}

// now compares one credential with its source.
func now(ctx context.Context, s *Settings, c *vm.Credential, d *wire.Delivered) wire.Now {
	switch {
	case string(c.Source.Kind) != d.Source:
		return wire.Changed
	case c.Source.Kind == vm.SourceVar && s.Store != nil:
		ref, _ := store.ParseVar(c.Source.Path)
		snap, err := s.Store.Pin(ctx, ref)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return wire.Gone
		case err != nil:
			return wire.Unknown
		}
		defer snap.Close()
		if snap.Version(ref) != store.Version(d.Version) {
			return wire.Changed
		}
		return wire.Same
	case c.Source.Kind == vm.SourceFile, c.Source.Kind == vm.SourceEncrypted:
		return ofFile(c.Source.Path, d.At)
	}
	return wire.Unknown
}

// ofFile: a file that changed after the asking process was made may have another value:
// systemd reads it after that, before it runs the program. Its content is not looked at.
func ofFile(path string, at time.Time) wire.Now {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wire.Gone
	case err != nil:
		return wire.Unknown
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return wire.Unknown
	}
	if time.Unix(st.Ctim.Unix()).After(at) {
		return wire.Changed
	}
	return wire.Same
}
