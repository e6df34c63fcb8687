// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vmcred/vmcred/internal/peer"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// starts are the units that asked, each with its present start.
type starts struct {
	state      *stateDir
	limits     limits
	invocation func(unit string) (string, error) // a unit's present start

	mu   sync.Mutex
	now  map[string]*start // by unit
	held int               // bytes of values that are kept
}

// start is one start of a unit: everything that it is given is of one moment.
type start struct {
	unit, invocation string
	of               *starts

	mu    sync.Mutex
	over  bool   // the unit has another one by now
	given *given // as it stands in the state directory, or is about to; nil: not known

	// What is kept for the next question; nil: nothing.
	values  map[string]*secret.Value // by name on the host, and the transfer list
	sources map[string]string        // where they come from, as the VM's file said then
	arena   *secret.Arena
	bytes   int
	asked   time.Time
	forget  *time.Timer
}

func newStarts(dir string, l limits, invocation func(unit string) (string, error)) *starts {
	return &starts{state: &stateDir{dir}, limits: l, invocation: invocation, now: map[string]*start{}}
}

// isNow reports whether that is the unit's present start.
func (s *starts) isNow(unit, invocation string) bool {
	id, err := s.invocation(unit)
	return err == nil && id == invocation
}

// tidy forgets the starts that are not their units' present ones any more.
func (s *starts) tidy() error {
	return s.state.tidy(func(g *given) bool { return s.isNow(g.Unit, g.Invocation) })
}

// errOver is why a question is not answered that waited for longer than its start lasted.
var errOver = errors.New("the unit was started anew since this was asked")

// begin is the start to which a question belongs; it is locked, and the caller unlocks it.
func (s *starts) begin(p *peer.Peer, spec *vm.Spec) (*start, error) {
	s.mu.Lock()
	st := s.now[p.Unit]
	if st == nil || st.invocation != p.Invocation {
		// A late question of a start that is over must not end the present one.
		if !s.isNow(p.Unit, p.Invocation) {
			s.mu.Unlock()
			return nil, errOver
		}
		old := st
		st = &start{unit: p.Unit, invocation: p.Invocation, of: s}
		s.now[p.Unit] = st
		if old != nil {
			defer old.end()
		}
	}
	s.mu.Unlock()
	st.mu.Lock()
	switch {
	case st.over:
		st.mu.Unlock()
		return nil, errOver
	case st.given != nil && st.given.VM == spec.Name:
		return st, nil
	case st.given != nil:
		st.mu.Unlock()
		return nil, errors.New("what was given to this start belongs to the VM " + st.given.VM)
	}
	g, err := s.state.load(p.Invocation)
	switch {
	case errors.Is(err, os.ErrNotExist):
		g, err = &given{Unit: p.Unit, Invocation: p.Invocation, VM: spec.Name}, nil
	case err == nil && (g.Unit != p.Unit || g.VM != spec.Name):
		err = errors.New("what was given to this start belongs to " + g.Unit + " and the VM " + g.VM)
	}
	if err != nil {
		st.mu.Unlock()
		return nil, err
	}
	st.given = g
	return st, nil
}

// end forgets a start that is over.
func (st *start) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.over = true
	st.drop()
	st.of.state.remove(st.invocation)
}

// keep holds values for the next question of this start, for a while. It takes the arena.
func (st *start) keep(a *secret.Arena, values map[string]*secret.Value, spec *vm.Spec) {
	st.arena, st.values, st.bytes, st.sources = a, values, arenaBytes, sourcesOf(spec)
	for _, v := range values {
		st.bytes += v.Len()
	}
	st.of.hold(st.bytes)
}

// sourcesOf are the places in the store that a VM's file names, by name on the host.
func sourcesOf(spec *vm.Spec) map[string]string {
	out := map[string]string{}
	for _, c := range fromStore(spec) {
		out[c.Host] = c.Source.Path
	}
	return out
}

// touch says that the values were asked for just now.
func (st *start) touch() {
	st.asked = time.Now()
	if st.forget == nil {
		st.forget = time.AfterFunc(st.of.limits.hold, st.idle)
		return
	}
	st.forget.Reset(st.of.limits.hold)
}

// idle forgets the values. What the start was given is in the state directory.
func (st *start) idle() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.drop()
	st.given = nil
}

// save writes down what the start is given. If that fails, what stands there counts.
func (st *start) save() error {
	err := st.of.state.save(st.given)
	if err != nil {
		st.given = nil
	}
	return err
}

// drop wipes what is kept.
func (st *start) drop() {
	if st.forget != nil {
		st.forget.Stop()
		st.forget = nil
	}
	if st.arena == nil {
		return
	}
	_ = st.arena.Close() // wiped as far as that is possible
	st.of.hold(-st.bytes)
	st.arena, st.values, st.bytes = nil, nil, 0
}

// hold counts what is kept.
func (s *starts) hold(bytes int) {
	s.mu.Lock()
	s.held += bytes
	s.mu.Unlock()
}

// room wipes what was not asked for the longest, until what is kept is within its limit.
// The caller holds no start.
func (s *starts) room() {
	s.mu.Lock()
	if s.held <= s.limits.memory {
		s.mu.Unlock()
		return
	}
	all := make([]*start, 0, len(s.now))
	for _, st := range s.now {
		all = append(all, st)
	}
	s.mu.Unlock()
	type idle struct {
		*start
		asked time.Time
	}
	var list []idle
	for _, st := range all {
		if st.mu.TryLock() { // one that is worked on is in use
			if st.arena != nil {
				list = append(list, idle{st, st.asked})
			}
			st.mu.Unlock()
		}
	}
	slices.SortFunc(list, func(a, b idle) int { return a.asked.Compare(b.asked) })
	for _, st := range list {
		s.mu.Lock()
		enough := s.held <= s.limits.memory
		s.mu.Unlock()
		if enough {
			return
		}
		st.idle()
	}
}

func (s *starts) close() error {
	s.mu.Lock()
	all := s.now
	s.now = map[string]*start{}
	s.mu.Unlock()
	for _, st := range all {
		st.idle()
	}
	return nil
}
