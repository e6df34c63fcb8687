// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"maps"
	"net"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// answerLoad is systemd's way: it connects, for one credential of one unit, and takes what
// comes until the end. Nothing can be said there but the value.
func (b *Broker) answerLoad(ctx context.Context, c *net.UnixConn, worked func()) {
	p, err := b.o.Peer(c)
	if err != nil {
		b.o.Log.Warn("a connection was not answered", "error", err)
		_ = c.SetDeadline(time.Now().Add(b.limits.read))
		refuseLoad(c)
		return
	}
	defer p.Close()
	spec, id, ps := b.ofLoad(p)
	name := ""
	if spec != nil {
		name = spec.Name
	}
	var v *secret.Value
	var done func()
	if len(ps) == 0 {
		v, done, ps = b.load(ctx, p, spec, id)
	}
	worked() // who reads slowly holds up nobody
	if c.SetDeadline(time.Now().Add(b.limits.read)) != nil {
		return
	}
	if len(ps) > 0 {
		b.refuse(ctx, p, name, id, ps)
		refuseLoad(c)
		return
	}
	defer done()
	// A reader that is gone is nobody's trouble; one that goes half-way has a part, which
	// the list tells it. The kernel copies straight from the locked pages.
	if v.Len() > 0 {
		_ = v.Use(func(value []byte) error {
			_, err := c.Write(value)
			return err
		})
	}
}

// refuseLoad makes the unit fail (243/CREDENTIALS): systemd takes no credential of more
// than 1 MiB, and an end without a word would be an empty one.
func refuseLoad(c *net.UnixConn) {
	zeros := make([]byte, 64<<10)
	for sent := 0; sent <= credential.MaxValue; {
		n, err := c.Write(zeros)
		sent += n
		if err != nil {
			return // it has seen enough
		}
	}
}

// load is one credential of one start: the first question reads all of them, the next ones
// are answered from there. The value lives until done is called.
func (b *Broker) load(ctx context.Context, p *peer.Peer, spec *vm.Spec, id string) (v *secret.Value, done func(), ps problems) {
	if ps := loadable(spec, id); len(ps) > 0 {
		return nil, nil, ps
	}
	s, ps := b.settings()
	if len(ps) > 0 {
		return nil, nil, ps
	}
	st, err := b.starts.begin(p, spec)
	if err != nil {
		return nil, nil, later(err)
	}
	defer b.starts.room()
	defer st.mu.Unlock()
	if st.arena == nil || st.given.Versions == nil {
		if ps := b.fill(ctx, s, st, spec); len(ps) > 0 {
			return nil, nil, ps
		}
	}
	st.touch()
	kept, ok := st.values[id]
	if !ok || !maps.Equal(st.sources, sourcesOf(spec)) { // the VM's file is another one since
		return nil, nil, changed
	}
	if id != credential.TransferList {
		c := declared(spec, id)
		ref, _ := store.ParseVar(c.Source.Path)
		version := st.given.Versions[ref.Generator]
		note := func(g *given) { g.add(deliveredNow(c, version, "", kept, time.Now())) }
		if ps := b.giving(ctx, s, st, note, release(p, spec, c, version, "", kept)); len(ps) > 0 {
			return nil, nil, ps
		}
	}
	// What is kept may go before a slow reader has all of it: it gets a copy.
	a := secret.NewSmallArena()
	own, err := a.Make(kept.Len(), func(to []byte) (int, error) {
		n := 0
		err := kept.Use(func(from []byte) error { n = copy(to, from); return nil })
		return n, err
	})
	if err != nil {
		_ = a.Close()
		return nil, nil, problems{{Credential: id, Message: err.Error(), Hint: hintOf(err), Retry: true}}
	}
	return own, func() { _ = a.Close() }, nil
}

// fill reads all values of a start, makes its list, and keeps both.
func (b *Broker) fill(ctx context.Context, s *Settings, st *start, spec *vm.Spec) problems {
	st.drop()
	first := st.given.Versions == nil
	a := secret.NewSmallArena()
	values, ps := b.read(ctx, s, st, spec, a)
	if len(ps) == 0 {
		if err := withList(a, st.invocation, values); err != nil {
			ps = problems{{Message: err.Error(), Hint: hintOf(err), Retry: true}}
		}
	}
	// The versions are written down before anything leaves: another broker keeps to them.
	if len(ps) == 0 && first {
		if err := st.save(); err != nil {
			ps = later(err)
		}
	}
	if len(ps) > 0 {
		if first {
			st.given = nil // what stands there counts
		}
		_ = a.Close()
		return ps
	}
	st.keep(a, values, spec)
	b.count(true)
	return nil
}
