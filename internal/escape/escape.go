// SPDX-License-Identifier: Apache-2.0

// Package escape decides what a guest may do to the terminal that its console is
// shown on. What passes is text, colours, and moving and erasing on the screen.
// What does not: everything that the terminal answers (the answer would be typed
// into the host's shell), and everything that outlives the guest: titles, the
// clipboard, character sets, key and mouse modes, the lines scrolled off.
//
// The sequences are those of ECMA-48 and of xterm's ctlseqs. The terminal is
// taken for one that speaks UTF-8, and only whole sequences are passed on, so
// whatever it is sent means one thing.
package escape

import (
	"io"
	"time"
	"unicode"
	"unicode/utf8"
)

// Scope is how far a guest may go.
type Scope int

// The scopes.
const (
	// Show is for a console that is only looked at, beside the host's own lines.
	Show Scope = iota
	// Interact is for somebody who works in the guest: an editor may use the other
	// screen, a scroll region and the keys' application modes. Close ends them.
	Interact
)

// sequenceMax is the longest sequence that is passed on, in bytes after "ESC [".
const sequenceMax = 64

// patience is how long Close waits for a Write to come to its end.
const patience = time.Second

type phase int

const (
	ground  phase = iota
	escape        // after ESC
	nested        // after ESC and an intermediate byte: a character set, and the like
	control       // after ESC [
	str           // in a string that ends at ST, BEL, CAN or SUB
)

// Filter passes on to a writer what a guest may say. It is an io.WriteCloser;
// its output is the same however its input is cut.
type Filter struct {
	w     io.Writer
	scope Scope

	turn chan struct{} // full while somebody writes, who alone uses what follows

	phase phase
	seq   []byte // what follows ESC [, at most sequenceMax
	over  bool   // it is longer
	title bool   // in a string that BEL ends, too
	rune  []byte // the beginning of a character
	out   []byte
	undo  map[string]bool // what Close has to send
	ended bool
}

// NewFilter returns a filter in front of w.
func NewFilter(w io.Writer, s Scope) *Filter {
	return &Filter{w: w, scope: s, undo: map[string]bool{}, turn: make(chan struct{}, 1)}
}

// Write takes what a guest says. It holds back a sequence until it is whole, and
// drops everything after Close.
func (f *Filter) Write(b []byte) (int, error) {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.ended {
		return len(b), nil
	}
	f.out = f.out[:0]
	for _, c := range b {
		f.take(c)
	}
	if len(f.out) == 0 {
		return len(b), nil
	}
	if _, err := f.w.Write(f.out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close drops what is not whole and undoes what would outlive the guest: colours,
// a hidden cursor, modes. It does not close the writer, and gives up if a Write
// stays blocked: a terminal that stands still must not keep us from ending.
func (f *Filter) Close() error {
	select {
	case f.turn <- struct{}{}:
	case <-time.After(patience):
		return nil
	}
	defer func() { <-f.turn }()
	f.ended = true
	var out []byte
	for _, u := range undos {
		if f.undo[u] {
			out = append(out, u...)
		}
	}
	clear(f.undo)
	if len(out) == 0 {
		return nil
	}
	_, err := f.w.Write(out)
	return err
}

// take moves on by one byte.
func (f *Filter) take(c byte) {
	if len(f.rune) > 0 && !f.more(c) {
		return
	}
	switch {
	case c == 0x1b:
		f.phase = escape
	case c == 0x18 || c == 0x1a: // CAN, SUB
		f.phase = ground
	case f.phase == str:
		if c == '\a' && f.title {
			f.phase = ground
		}
	case c < 0x20:
		// A terminal obeys these in the middle of a sequence, too.
		if c >= '\a' && c <= '\n' || c == '\r' {
			f.out = append(f.out, c)
		}
	case c == 0x7f:
	case f.phase == ground:
		f.text(c)
	case c >= 0x80: // no sequence has it
		f.phase = ground
		f.text(c)
	default:
		f.inSequence(c)
	}
}

func (f *Filter) text(c byte) {
	if c < 0x80 {
		f.out = append(f.out, c)
		return
	}
	f.rune = append(f.rune[:0], c)
	f.whole()
}

// more takes the next byte of a character; it returns true if the byte is none.
func (f *Filter) more(c byte) bool {
	if c&0xc0 != 0x80 {
		f.rune = f.rune[:0]
		f.out = append(f.out, "\ufffd"...)
		return true
	}
	f.rune = append(f.rune, c)
	f.whole()
	return false
}

// whole passes the character on once all of it is there. One that is not shown is
// dropped: C1 controls, and those that turn the direction of writing.
func (f *Filter) whole() {
	if !utf8.FullRune(f.rune) {
		return
	}
	switch r, n := utf8.DecodeRune(f.rune); {
	case r == utf8.RuneError && n <= 1:
		f.out = append(f.out, "\ufffd"...)
	case unicode.IsGraphic(r):
		f.out = append(f.out, f.rune...)
	}
	f.rune = f.rune[:0]
}

// inSequence takes a byte from 0x20 to 0x7e after ESC.
func (f *Filter) inSequence(c byte) {
	switch f.phase {
	case escape:
		f.afterEscape(c)
	case nested:
		if c >= 0x30 {
			f.phase = ground
		}
	case control:
		switch {
		case c >= 0x40:
			f.phase = ground
			if !f.over {
				f.sequence(c)
			}
		case len(f.seq) == sequenceMax:
			f.over = true
		default:
			f.seq = append(f.seq, c)
		}
	case ground, str:
	}
}

func (f *Filter) afterEscape(c byte) {
	f.phase = ground
	switch {
	case c == '[':
		f.phase, f.seq, f.over = control, f.seq[:0], false
	case c == ']', c == 'P', c == 'X', c == '^', c == '_': // OSC, DCS, SOS, PM, APC
		f.phase, f.title = str, c == ']'
	case c < 0x30:
		f.phase = nested
	default:
		f.short(c)
	}
}
