// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// The search looks at 8-byte windows of the text, one every step bytes, and
// holds in its table the windows of every form at step consecutive offsets: of
// those, any occurrence has exactly one where the search looks. For forms that
// writers break over lines the table holds every offset, because the break may
// fall into any of them.
const (
	windowLen = 8
	maxStep   = 16
)

// table finds the forms that may have a given window.
type table struct {
	step   int      // distance between windows looked at
	margin int      // the most bytes an occurrence has
	mul    uint64   // random and odd
	shift  uint     // hash = window * mul >> shift
	bits   []uint64 // one bit a hash: some form has it
	heads  []int32  // by the hash's upper bits: first anchor, -1 for none
	fold   uint     // hash >> fold indexes heads
	chain  []anchor
}

// anchor is one window of a form.
type anchor struct {
	form, off, next int32
}

// breaks is how many bytes of line breaks and indentation may lie in a form.
func breaks(n int) int { return n/2 + 16 }

// index builds the table over the forms in the blob.
func (n *Needles) index(blob []byte) error {
	t := &n.table
	t.step, t.mul = maxStep, rand.Uint64()|1
	anchors := 0
	for _, f := range n.forms {
		whole, extent := f.len, f.len
		if f.wraps {
			extent += breaks(f.len)
			anchors += f.len
			if f.len/2 > 2*windowLen {
				whole = f.len / 2 // the longer piece of a form in two lines
			}
		}
		t.margin = max(t.margin, extent)
		t.step = max(1, min(t.step, whole-windowLen+1))
		anchors += maxStep
	}
	size := max(16, bits.Len(uint(anchors))+7) // about one bit in 128 is set
	t.shift, t.fold = uint(64-size), uint(max(0, size-18))
	t.bits = make([]uint64, 1<<(size-6))
	t.heads = make([]int32, 1<<(size-int(t.fold)))
	for i := range t.heads {
		t.heads[i] = -1
	}
	for i, f := range n.forms {
		last := f.len - windowLen
		if !f.wraps {
			last = min(last, t.step-1)
		}
		for off := 0; off <= last; off++ {
			t.insert(blob[f.off+off:], anchor{form: int32(i), off: int32(off)})
		}
	}
	return nil
}

func (t *table) insert(window []byte, a anchor) {
	h := binary.LittleEndian.Uint64(window) * t.mul >> t.shift
	t.bits[h>>6] |= 1 << (h & 63)
	a.next = t.heads[h>>t.fold]
	t.heads[h>>t.fold] = int32(len(t.chain))
	t.chain = append(t.chain, a)
}

// stream searches bytes that come piece by piece. It is for one goroutine.
type stream struct {
	n    *Needles
	buf  []byte
	fill int                           // bytes in buf
	next int                           // where in buf to look next
	base int64                         // where in the stream buf begins
	last []int64                       // by form: where the last occurrence begins
	hit  func(f *form, from, to int64) // where an occurrence begins and ends
}

// streamRoom is the least number of bytes a stream offers to be filled.
const streamRoom = 256 << 10

func (n *Needles) newStream(hit func(f *form, from, to int64)) *stream {
	s := &stream{n: n, buf: make([]byte, streamRoom+3*n.table.margin+maxStep), hit: hit}
	s.start()
	return s
}

func (s *stream) start() {
	s.fill, s.next, s.base = 0, 0, 0
	if s.last == nil {
		s.last = make([]int64, len(s.n.forms))
	}
	for i := range s.last {
		s.last[i] = -1
	}
}

// room is where the next bytes go, at least streamRoom.
func (s *stream) room() []byte { return s.buf[s.fill:] }

// grew searches after n bytes were put into room.
func (s *stream) grew(n int) error {
	s.fill += n
	if err := s.search(s.fill - s.n.table.margin); err != nil {
		return err
	}
	if from := s.next - s.n.table.margin; from > 0 {
		rest := copy(s.buf, s.buf[from:s.fill])
		clear(s.buf[rest:s.fill])
		s.fill, s.next, s.base = rest, s.next-from, s.base+int64(from)
	}
	return nil
}

// write searches p as the next bytes.
func (s *stream) write(p []byte) error {
	for len(p) > 0 {
		n := copy(s.room(), p)
		if err := s.grew(n); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// end searches what is left, wipes the buffer and makes the stream ready for another text.
func (s *stream) end() error {
	err := s.search(s.fill)
	clear(s.buf[:s.fill])
	s.start()
	return err
}

// all searches a whole text where it lies.
func (n *Needles) all(text []byte, hit func(f *form, from, to int64)) error {
	if len(text) < windowLen {
		return nil
	}
	s := &stream{n: n, buf: text, hit: hit}
	s.start()
	s.fill = len(text)
	return s.search(s.fill)
}

// search looks at the windows that begin before to and end in the buffer.
func (s *stream) search(to int) error {
	to = min(to, s.fill-windowLen+1)
	if s.next >= to {
		return nil
	}
	return s.n.blob.Use(func(blob []byte) error {
		t := &s.n.table
		buf, mul, shift, set, step := s.buf[:s.fill], t.mul, t.shift, t.bits, t.step
		p := s.next
		for ; p < to; p += step {
			h := binary.LittleEndian.Uint64(buf[p:]) * mul >> shift
			if set[h>>6]&(1<<(h&63)) != 0 {
				s.look(blob, p, h)
			}
		}
		s.next = p
		return nil
	})
}

// look compares every form that may have its window at p.
func (s *stream) look(blob []byte, p int, h uint64) {
	t := &s.n.table
	for i := t.heads[h>>t.fold]; i >= 0; i = t.chain[i].next {
		a := &t.chain[i]
		f := &s.n.forms[a.form]
		want, off := blob[f.off:f.off+f.len], int(a.off)
		if !bytes.Equal(want[off:off+windowLen], s.buf[p:p+windowLen]) {
			continue
		}
		begin, end := p-off, p-off+f.len
		if f.wraps {
			begin, end = wrapped(s.buf[:s.fill], want, p, off)
		} else if begin < 0 || end > s.fill || !bytes.Equal(s.buf[begin:end], want) {
			begin = -1
		}
		if at := s.base + int64(begin); begin >= 0 && at > s.last[a.form] {
			s.last[a.form] = at
			s.hit(f, at, s.base+int64(end))
		}
	}
}

// wrapped finds where an occurrence of want begins and ends that has want[off]
// at text[p] and may be broken over lines; begin is -1 if there is none.
func wrapped(text, want []byte, p, off int) (begin, end int) {
	allowed := breaks(len(want))
	end = p
	for i := off; i < len(want); end++ {
		switch {
		case end == len(text):
			return -1, 0
		case text[end] == want[i]:
			i++
		case allowed > 0 && isBreak(text[end]):
			allowed--
		default:
			return -1, 0
		}
	}
	begin = p
	for i := off; i > 0; {
		begin--
		switch {
		case begin < 0:
			return -1, 0
		case text[begin] == want[i-1]:
			i--
		case allowed > 0 && isBreak(text[begin]):
			allowed--
		default:
			return -1, 0
		}
	}
	return begin, end
}

func isBreak(c byte) bool { return c == '\n' || c == '\r' || c == ' ' || c == '\t' }
