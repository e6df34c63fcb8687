// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Value is one secret value in locked pages. Copies of a Value are the same
// value. The zero Value and a nil *Value count as wiped.
type Value struct {
	_ [0]func() // not comparable with ==; use Equal
	s *slot
}

// Len returns the value's length in bytes, 0 when it was wiped.
func (v *Value) Len() int {
	if v == nil || v.s == nil {
		return 0
	}
	v.s.a.mu.Lock()
	defer v.s.a.mu.Unlock()
	if v.s.dead || v.s.a.closed {
		return 0
	}
	return v.s.n
}

// Use calls f with the value's bytes and returns what f returns, or [ErrWiped].
// The slice must not be kept, and not be turned into a string or copied into
// memory of another kind.
func (v *Value) Use(f func([]byte) error) error {
	if v == nil || v.s == nil {
		return ErrWiped
	}
	if err := v.s.pin(); err != nil {
		return err
	}
	defer v.s.unpin()
	defer scrub()
	return f(v.s.bytes())
}

// Equal reports whether both values are the same bytes, in a time that depends
// on their lengths only. A wiped value equals nothing.
func (v *Value) Equal(o *Value) bool {
	same := false
	_ = v.Use(func(a []byte) error { // ErrWiped leaves same false
		return o.Use(func(b []byte) error {
			same = subtle.ConstantTimeCompare(a, b) == 1
			return nil
		})
	})
	return same
}

// Wipe zeroes the value; if another goroutine uses it at this moment, when that
// one is done. Wiping again does nothing.
func (v *Value) Wipe() {
	if v == nil || v.s == nil {
		return
	}
	if v.s.own {
		_ = v.s.a.Close() // our own mapping: munmap(2) cannot fail
		return
	}
	v.s.kill()
}

// String returns "secret(44 bytes)" or "secret(wiped)", never the value.
func (v Value) String() string {
	if v.s == nil || v.s.pin() != nil {
		return "secret(wiped)"
	}
	defer v.s.unpin()
	return fmt.Sprintf("secret(%d bytes)", len(v.s.bytes()))
}

// GoString is [Value.String].
func (v Value) GoString() string { return v.String() }

// Format writes [Value.String] for every verb.
func (v Value) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, v.String()) }

// LogValue logs [Value.String].
func (v Value) LogValue() slog.Value { return slog.StringValue(v.String()) }

// MarshalJSON fails: a value cannot be marshalled.
func (v Value) MarshalJSON() ([]byte, error) { return nil, ErrUnprintable }

// MarshalText fails: a value cannot be marshalled.
func (v Value) MarshalText() ([]byte, error) { return nil, ErrUnprintable }

// MarshalBinary fails: a value cannot be marshalled.
func (v Value) MarshalBinary() ([]byte, error) { return nil, ErrUnprintable }

// MarshalYAML fails: a value cannot be marshalled.
func (v Value) MarshalYAML() (any, error) { return nil, ErrUnprintable }

// GobEncode fails: a value cannot be marshalled.
func (v Value) GobEncode() ([]byte, error) { return nil, ErrUnprintable }
