// SPDX-License-Identifier: Apache-2.0

package secret

// slot is one value's place in a mapping. Fields are guarded by the arena's
// mutex. A pinned slot's bytes stay where they are until it is unpinned; wiping
// it meanwhile only marks it.
type slot struct {
	a    *Arena
	m    *mapping
	off  int
	n    int // bytes of the value
	pins int
	dead bool
	own  bool // the arena is this value's alone
}

// reserve cuts n bytes from the arena. The slot is pinned for the caller.
func (a *Arena) reserve(n int) (*slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reserveLocked(n)
}

func (a *Arena) reserveLocked(n int) (*slot, error) {
	if a.closed {
		return nil, ErrWiped
	}
	m, err := a.room(n)
	if err != nil {
		return nil, err
	}
	s := &slot{a: a, m: m, off: m.used, n: n, pins: 1}
	m.used += roundUp(n, align)
	m.live++
	m.pins++
	return s, nil
}

// room returns a mapping with n free bytes.
func (a *Arena) room(n int) (*mapping, error) {
	for _, m := range a.maps {
		if len(m.mem())-m.used >= roundUp(n, align) {
			return m, nil
		}
	}
	return a.grow(n)
}

func (a *Arena) grow(n int) (*mapping, error) {
	m, err := a.newMap(max(a.next, roundUp(n, align)))
	if err != nil {
		return nil, err
	}
	a.next = min(2*a.next, maxMapping)
	a.weak = a.weak || !m.secret
	a.maps = append(a.maps, m)
	return m, nil
}

// enlarge returns a pinned slot of n bytes that begins with s's bytes, and frees
// s. On an error it returns s as it was.
func (a *Arena) enlarge(s *slot, n int) (*slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if extra := roundUp(n, align) - roundUp(s.n, align); s.last() && s.m.used+extra <= len(s.m.mem()) {
		s.m.used += extra
		s.n = n
		return s, nil
	}
	t, err := a.reserveLocked(n)
	if err != nil {
		return s, err
	}
	quietly(func() { copy(t.bytes(), s.bytes()) })
	s.dead = true
	s.unpinLocked()
	return t, nil
}

// bytes may be called only while the slot is pinned.
func (s *slot) bytes() []byte { return s.m.mem()[s.off : s.off+s.n : s.off+s.n] }

func (s *slot) last() bool { return s.off+roundUp(s.n, align) == s.m.used }

// shrink keeps the first n bytes and wipes the rest.
func (s *slot) shrink(n int) {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	clear(s.bytes()[n:])
	if s.last() {
		s.m.used = s.off + roundUp(n, align)
	}
	s.n = n
}

func (s *slot) pin() error {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.dead || s.a.closed {
		return ErrWiped
	}
	s.pins++
	s.m.pins++
	return nil
}

func (s *slot) unpin() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.unpinLocked()
}

func (s *slot) unpinLocked() {
	s.pins--
	s.m.pins--
	if s.a.closed {
		if s.m.pins == 0 {
			_ = s.m.unmap() // Close has returned; munmap(2) of our own mapping cannot fail
		}
		return
	}
	if s.dead && s.pins == 0 {
		s.free()
	}
}

// kill wipes the slot, now or when its last user is done.
func (s *slot) kill() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.dead || s.a.closed {
		return
	}
	s.dead = true
	if s.pins == 0 {
		s.free()
	}
}

// free wipes the bytes and gives back what can be used again.
func (s *slot) free() {
	clear(s.bytes())
	m := s.m
	if s.last() {
		m.used = s.off
	}
	m.live--
	if m.live > 0 {
		return
	}
	m.used = 0
	if len(s.a.maps) > 1 {
		s.a.remove(m)
	}
}

func (a *Arena) remove(m *mapping) {
	for i := range a.maps {
		if a.maps[i] == m {
			a.maps = append(a.maps[:i], a.maps[i+1:]...)
			_ = m.unmap() // our own mapping: munmap(2) cannot fail
			return
		}
	}
}
