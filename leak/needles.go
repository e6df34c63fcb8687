// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/vmcred/vmcred/secret"
)

// What a value must be to be searched for, in bytes.
const (
	MinLen      = 8   // a shorter value is found by chance
	MinDistinct = 4   // so is one of fewer different bytes
	WholeLen    = 256 // a longer value is looked for by its two ends
	PartLen     = 128 // the length of such an end
)

// Needle is a value to look for, with the name that findings give it.
type Needle struct {
	Name  string
	Value *secret.Value
}

// RefusedError says that a value cannot be searched for: it would be found
// everywhere by chance.
type RefusedError struct {
	Name     string
	Len      int
	Distinct int
}

// Error names the value and says why.
func (e *RefusedError) Error() string {
	if e.Len < MinLen {
		return fmt.Sprintf("%s: a value of %d bytes is found by chance, so it is not searched for", e.Name, e.Len)
	}
	return fmt.Sprintf("%s: a value of %d different bytes is found by chance, so it is not searched for", e.Name, e.Distinct)
}

// Hint says what to do about it.
func (e *RefusedError) Hint() string {
	return fmt.Sprintf("search with a test value of at least %d bytes, %d of them different", MinLen, MinDistinct)
}

// form is one byte sequence to find. Its bytes are in the blob.
type form struct {
	needle   string
	name     string // the encoding's
	part     string // "", "first 128 bytes" or "last 128 bytes"
	off, len int    // in the blob
	wraps    bool
}

// Needles is a set of values in all their forms, ready to be searched for. It
// is safe for concurrent use until Close.
type Needles struct {
	arena *secret.Arena
	blob  *secret.Value // the bytes of all forms
	forms []form
	table table
}

// NewNeedles prepares a search for the values, which are not kept. The error
// joins one [RefusedError] for each value that cannot be searched for.
func NewNeedles(list ...Needle) (*Needles, error) {
	var errs []error
	room := 0
	for _, l := range list {
		errs = append(errs, check(l))
		n := l.Value.Len()
		if n > WholeLen {
			n = 2 * PartLen
		}
		for _, e := range encodings() {
			room += n * e.grows
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("no value to search for")
	}
	n := &Needles{arena: secret.NewArena()}
	blob, err := n.arena.Make(room, func(dst []byte) (int, error) { return n.build(dst, list) })
	if err == nil {
		n.blob = blob
		err = blob.Use(n.index)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the search: %w", err), n.Close())
	}
	return n, nil
}

// Close wipes every form. Searches end with an error afterwards.
func (n *Needles) Close() error { return n.arena.Close() }

func check(l Needle) error {
	return l.Value.Use(func(v []byte) error {
		var seen [256]bool
		distinct := 0
		for _, c := range v {
			if !seen[c] {
				seen[c] = true
				distinct++
			}
		}
		clear(seen[:])
		if len(v) < MinLen || distinct < MinDistinct {
			return &RefusedError{Name: l.Name, Len: len(v), Distinct: distinct}
		}
		return nil
	})
}

// build writes every different form to dst and returns how long they are together.
func (n *Needles) build(dst []byte, list []Needle) (int, error) {
	used := 0
	for _, l := range list {
		err := l.Value.Use(func(v []byte) error {
			if len(v) <= WholeLen {
				used = n.add(dst, used, l.Name, "", v)
				return nil
			}
			first, last := ends(v)
			used = n.add(dst, used, l.Name, fmt.Sprintf("first %d bytes", len(first)), first)
			used = n.add(dst, used, l.Name, fmt.Sprintf("last %d bytes", len(last)), last)
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("%s: %w", l.Name, err)
		}
	}
	return used, nil
}

// ends returns the two ends of a long value. In UTF-8 they break between characters.
func ends(v []byte) (first, last []byte) {
	to, from := PartLen, len(v)-PartLen
	if utf8.Valid(v) {
		for !utf8.RuneStart(v[to]) {
			to--
		}
		for !utf8.RuneStart(v[from]) {
			from++
		}
	}
	return v[:to], v[from:]
}

func (n *Needles) add(dst []byte, used int, needle, part string, v []byte) int {
	own := len(n.forms)
encodings:
	for _, e := range encodings() {
		b := dst[used:]
		b = b[:e.put(b, v)]
		if len(b) < windowLen {
			clear(b)
			continue
		}
		for _, f := range n.forms[own:] {
			if bytes.Equal(dst[f.off:f.off+f.len], b) {
				clear(b)
				continue encodings
			}
		}
		n.forms = append(n.forms, form{needle: needle, name: e.name, part: part, off: used, len: len(b), wraps: e.wraps})
		used += len(b)
	}
	return used
}
