// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// answerRunner is our runner's way: one request, one answer.
func (b *Broker) answerRunner(ctx context.Context, c *net.UnixConn) {
	// Whatever is sent from now on has its sender's name on it.
	if err := wire.Identify(c); err != nil {
		b.o.Log.Warn("a connection was not answered", "error", err)
		return
	}
	p, err := b.o.Peer(c)
	if err != nil {
		return // gone, mostly
	}
	defer p.Close()
	leave, ok := b.gate.enter(p)
	if !ok {
		if _, ok := b.flood.stranger(p); ok {
			b.o.Log.Warn(fmt.Sprintf("a connection was closed: there are %d of %s already", b.limits.peers, group(p)), "uid", p.UID, "pid", p.PID, "object_systemd_unit", p.Unit)
		}
		return
	}
	defer leave()
	a := secret.NewSmallArena()
	defer a.Close()
	r, values, ok := b.request(c, p, a)
	if !ok {
		return
	}
	answer, with, ok := b.work(ctx, p, r, values, a)
	if ok {
		b.send(c, answer, with)
	}
}

// work waits for its turn, if it is to do anything; false: there is none any more.
func (b *Broker) work(ctx context.Context, p *peer.Peer, r *wire.Request, values []*secret.Value, a *secret.Arena) (*wire.Answer, []*secret.Value, bool) {
	if r.Op == wire.Health { // what hangs is seen by it
		return &wire.Answer{Health: b.health()}, nil, true
	}
	if b.gate.begin(ctx) != nil {
		return nil, nil, false
	}
	defer b.gate.end()
	answer, with := b.do(ctx, p, r, values, a)
	return answer, with, true
}

// request reads what the runner asks for, and makes sure that it is the peer who asks: a
// process that has taken the number of the one that connected answers no Hello.
func (b *Broker) request(c *net.UnixConn, p *peer.Peer, a *secret.Arena) (*wire.Request, []*secret.Value, bool) {
	if c.SetDeadline(time.Now().Add(b.limits.silent)) != nil || wire.Send(c, wire.Hello{Protocol: wire.Protocol}, nil) != nil {
		return nil, nil, false
	}
	most := wire.MaxFrame
	if outsider(p) {
		most, a = wire.MaxSmall, nil
	}
	r, values, sender, err := wire.ReceiveRequest(c, a, most)
	switch {
	case err != nil:
	case sender.PID != p.PID || p.Check() != nil:
		err = fmt.Errorf("process %d asks on a connection of process %d", sender.PID, p.PID)
	case sender.UID != b.o.uid(p):
		err = fmt.Errorf("user %d asks on a connection of user %d", sender.UID, b.o.uid(p))
	}
	if err != nil {
		if _, ok := b.flood.stranger(p); ok {
			b.o.Log.Warn("a request was not understood", "error", clean(err.Error()), "uid", p.UID, "pid", p.PID, "object_systemd_unit", p.Unit)
		}
		ps := problem("", "not understood: "+clean(err.Error()), "is the runner of the same version of vmcred?")
		if outsider(p) { // for whom it was too much
			ps = notAUnit(p)
		}
		_ = wire.Send(c, wire.Answer{Problems: ps}, nil)
		return nil, nil, false
	}
	return r, values, true
}

// send writes the answer, and the values with it, which stay until they were read.
func (b *Broker) send(c *net.UnixConn, answer *wire.Answer, with []*secret.Value) {
	if c.SetDeadline(time.Now().Add(b.limits.read)) != nil {
		return
	}
	m, err := wire.Values(with)
	if err != nil {
		answer = &wire.Answer{Problems: problems{{Message: "the values cannot be sent: " + err.Error(), Hint: hintOf(err), Retry: true}}}
		m = nil
	}
	if m != nil {
		defer m.Release() // wiped as far as that is possible
	}
	// Who does not want the answer any more is nobody's trouble.
	if wire.Send(c, answer, m) == nil {
		_ = wire.AwaitClose(c)
	}
}

// do is what was asked for.
func (b *Broker) do(ctx context.Context, p *peer.Peer, r *wire.Request, values []*secret.Value, a *secret.Arena) (*wire.Answer, []*secret.Value) {
	switch r.Op {
	case wire.Status:
		return b.status(ctx, p, r.VM), nil
	case wire.Take, wire.Record, wire.Refuse:
	default:
		return &wire.Answer{Problems: problem("", "there is nothing called "+clean(string(r.Op))+" to ask for", "")}, nil
	}
	// Who may have nothing learns nothing of what there is.
	if outsider(p) {
		ps := notAUnit(p)
		b.refuse(ctx, p, "", "", ps)
		return &wire.Answer{Problems: ps}, nil
	}
	spec, ps := b.ofRunner(p, r.VM)
	if len(ps) > 0 {
		b.refuse(ctx, p, "", "", ps)
		return &wire.Answer{Problems: ps}, nil
	}
	answer := &wire.Answer{}
	var with []*secret.Value
	switch r.Op {
	case wire.Take:
		answer.Credentials, with, ps = b.take(ctx, p, spec, a)
	case wire.Record:
		ps = b.record(ctx, p, spec, r.Credentials, values)
	default:
		return &wire.Answer{Problems: b.recordRefusals(ctx, p, spec, r.Refusals)}, nil
	}
	if len(ps) > 0 {
		b.refuse(ctx, p, spec.Name, "", ps)
		return &wire.Answer{Problems: ps}, nil
	}
	if r.Op == wire.Take {
		b.count(true)
	}
	return answer, with
}

// take hands over what the store has for the VM, once for each start.
func (b *Broker) take(ctx context.Context, p *peer.Peer, spec *vm.Spec, a *secret.Arena) ([]wire.Credential, []*secret.Value, problems) {
	s, ps := b.settings()
	if len(ps) > 0 {
		return nil, nil, ps
	}
	st, err := b.starts.begin(p, spec)
	if err != nil {
		return nil, nil, later(err)
	}
	defer st.mu.Unlock()
	if st.given.Taken {
		return nil, nil, problem("", "this start has been given its values already", "each start gets them once: systemctl restart "+spec.Unit)
	}
	byName, ps := b.read(ctx, s, st, spec, a)
	if len(ps) > 0 {
		return nil, nil, ps
	}
	all := fromStore(spec)
	var (
		entries []audit.Entry
		said    []wire.Credential
		values  []*secret.Value
		notes   []wire.Delivered
	)
	for i := range all {
		c, v := &all[i], byName[all[i].Host]
		ref, _ := store.ParseVar(c.Source.Path)
		version := st.given.Versions[ref.Generator]
		entries = append(entries, release(p, spec, c, version, "", v))
		said = append(said, wire.Credential{Host: c.Host, Guest: c.Guest, Bytes: v.Len(), Version: string(version)})
		values = append(values, v)
		notes = append(notes, deliveredNow(c, version, "", v, time.Now()))
	}
	ps = b.giving(ctx, s, st, func(g *given) {
		g.Taken = true
		for _, d := range notes {
			g.add(d)
		}
	}, entries...)
	if len(ps) > 0 {
		return nil, nil, ps
	}
	return said, values, nil
}

func later(err error) problems {
	if errors.Is(err, errOver) {
		return problems{{Message: err.Error(), Retry: true}}
	}
	return problems{{Message: "it cannot be written down what this start is given: " + err.Error(), Hint: "is /run full? df -h /run", Retry: true}}
}

// recordsMax is how often one start may put on record what it was given: a runner does it
// once, and a hypervisor that is taken over must not be able to fill the disk.
const recordsMax = 4

// record puts on record what the runner has from systemd and is about to hand to the VMM.
func (b *Broker) record(ctx context.Context, p *peer.Peer, spec *vm.Spec, said []wire.Credential, values []*secret.Value) problems {
	s, ps := b.settings()
	if len(ps) > 0 {
		return ps
	}
	if len(said) != len(values) {
		return problem("", "the values did not come along", "is the runner of the same version of vmcred?")
	}
	for _, pr := range s.CheckSources(spec).Fatal() {
		ps = append(ps, problem("", pr.Error(), pr.Hint)...)
	}
	if ps = append(ps, recordable(spec, said)...); len(ps) > 0 {
		return ps
	}
	st, err := b.starts.begin(p, spec)
	if err != nil {
		return later(err)
	}
	defer st.mu.Unlock()
	if st.given.Records >= recordsMax {
		return problem("", "this start has put on record what it was given already", "systemctl restart "+spec.Unit)
	}
	var entries []audit.Entry
	var notes []wire.Delivered
	for i, w := range said {
		c := declared(spec, w.Host)
		var version store.Version
		if c.Source.Kind == vm.SourceVar { // it came by systemd from here
			ref, _ := store.ParseVar(c.Source.Path)
			version = st.given.Versions[ref.Generator]
		}
		entries = append(entries, release(p, spec, c, version, clean(w.Channel), values[i]))
		notes = append(notes, deliveredNow(c, version, clean(w.Channel), values[i], p.Began()))
	}
	return b.giving(ctx, s, st, func(g *given) {
		g.Records++
		for _, d := range notes {
			g.add(d)
		}
	}, entries...)
}

// recordable is what is wrong with what a runner says that its VM is about to get. It may
// have been taken over.
func recordable(spec *vm.Spec, said []wire.Credential) problems {
	if len(said) > len(spec.Credentials) {
		return problem("", fmt.Sprintf("%d values are to be put on record, and the VM %s declares %d", len(said), spec.Name, len(spec.Credentials)), "")
	}
	var ps problems
	seen := make(map[string]bool, len(said))
	for _, w := range said {
		switch {
		case credential.CheckName(w.Host) != nil: // it may be long: nobody meant it
			ps = append(ps, problem("", credential.CheckName(w.Host).Error(), "")...)
		case declared(spec, w.Host) == nil:
			ps = append(ps, undeclared(spec, w.Host)...)
		case seen[w.Host]:
			ps = append(ps, problem(w.Host, "it is to be put on record twice", "")...)
		}
		seen[w.Host] = true
	}
	return ps
}

// recordRefusals puts on record why the runner does not start the VM.
func (b *Broker) recordRefusals(ctx context.Context, p *peer.Peer, spec *vm.Spec, all []wire.Refusal) problems {
	s, ps := b.settings()
	if len(ps) > 0 {
		return ps
	}
	if len(all) > credential.MaxFiles {
		all = all[:credential.MaxFiles]
	}
	if len(all) == 0 {
		return nil
	}
	left, ok := b.mayBeRecorded(p, spec.Name, len(all))
	if !ok {
		return problem("", "there were too many refusals of "+spec.Unit+": this one is not on record", "")
	}
	var entries []audit.Entry
	for _, r := range all {
		e := audit.Entry{Op: audit.Refuse, By: who(p), VM: spec.Name, Decision: audit.Deny, Reason: clean(r.Reason)}
		if left > 0 {
			e.Reason, left = e.Reason+notOnRecord(left), 0
		}
		if r.Host != "" {
			e.Credential = &audit.Credential{Host: clean(r.Host)}
		}
		entries = append(entries, e)
	}
	return b.append(ctx, s, entries...)
}
