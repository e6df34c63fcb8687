// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
	"github.com/vmcred/vmcred/vm"
)

// who is the asker, as a record has it.
func who(p *peer.Peer) *audit.Who {
	return &audit.Who{UID: int(p.UID), PID: p.PID, Start: p.Start, Unit: p.Unit, Invocation: p.Invocation}
}

// release is the record of a value that is about to leave.
func release(p *peer.Peer, spec *vm.Spec, c *vm.Credential, version store.Version, channel string, v *secret.Value) audit.Entry {
	return audit.Entry{
		Op: audit.Release, By: who(p), VM: spec.Name, Decision: audit.Allow, Value: v, Version: string(version),
		Credential: &audit.Credential{Host: c.Host, Guest: c.Guest, Bytes: v.Len(), Channel: channel},
	}
}

// giving notes what is about to leave, and puts it on record. If that fails nothing leaves,
// and nothing is noted: another try may have it.
func (b *Broker) giving(ctx context.Context, s *Settings, st *start, note func(*given), entries ...audit.Entry) problems {
	before := st.given.copy()
	note(st.given)
	if err := st.save(); err != nil {
		return later(err)
	}
	ps := b.append(ctx, s, entries...)
	if len(ps) > 0 {
		st.given = before
		_ = st.save() // else the start may seem to have been given it
	}
	return ps
}

// deliveredNow is what Status says later.
func deliveredNow(c *vm.Credential, version store.Version, channel string, v *secret.Value, at time.Time) wire.Delivered {
	return wire.Delivered{
		Host: c.Host, Guest: c.Guest, Bytes: v.Len(), Channel: channel, Source: string(c.Source.Kind), At: at, Version: string(version),
	}
}

// refuse says why nothing was handed out: on record, and in the journal, where
// `systemctl status UNIT` shows it beside the unit's own words. name is the VM's, if it is
// known.
func (b *Broker) refuse(ctx context.Context, p *peer.Peer, name, id string, ps problems) {
	b.count(false)
	left, ok := b.mayBeRecorded(p, name, len(ps))
	if !ok {
		return
	}
	if name == "" {
		ps = ps[:1] // a stranger's refusal is one record
	}
	var entries []audit.Entry
	for _, pr := range ps {
		e := audit.Entry{Op: audit.Refuse, By: who(p), VM: name, Decision: audit.Deny, Reason: clean(pr.Message)}
		if host := first(pr.Credential, id); host != "" {
			e.Credential = &audit.Credential{Host: clean(host)}
		}
		if left > 0 {
			e.Reason += notOnRecord(left)
			left = 0
		}
		entries = append(entries, e)
		b.say(p, pr, id)
	}
	s, none := b.settings()
	if len(none) > 0 {
		return
	}
	// What is wrong with the log itself has been said.
	_ = b.append(ctx, s, entries...)
}

// mayBeRecorded reports whether n refusals go on record, and how many before them did not.
func (b *Broker) mayBeRecorded(p *peer.Peer, name string, n int) (left uint64, ok bool) {
	if name == "" {
		return b.flood.stranger(p)
	}
	return b.flood.unit(p.Unit, n)
}

func notOnRecord(left uint64) string {
	return fmt.Sprintf(" (%d refusals before it are not on record: there were too many)", left)
}

// say writes one refusal into the journal.
func (b *Broker) say(p *peer.Peer, pr wire.Problem, id string) {
	message := "refused"
	if host := first(pr.Credential, id); host != "" {
		message += " " + clean(host)
	}
	if p.Unit != "" {
		message += " for " + p.Unit
	}
	message += ": " + clean(pr.Message)
	if pr.Hint != "" {
		message += "; hint: " + clean(pr.Hint)
	}
	b.o.Log.Error(message, "object_systemd_unit", p.Unit, "uid", p.UID, "pid", p.PID, "hint", clean(pr.Hint))
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

const cleanMax = 1 << 10 // bytes

// clean makes one line that can be printed of what may be a peer's own words.
func clean(s string) string {
	if len(s) > cleanMax {
		s = s[:cleanMax] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // what turns the line's direction, too
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
