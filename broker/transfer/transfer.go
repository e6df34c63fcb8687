// SPDX-License-Identifier: Apache-2.0

// Package transfer is the list that goes beside the values which systemd fetches for a
// unit (LoadCredential= with a socket): names, lengths and keyed digests. That road has
// no lengths and no errors, so a value that is cut on it looks like a whole one. With the
// list its receiver can tell.
//
// The list is a text, and a secret: it holds its own key, with which a weak value could
// be guessed by its digest.
//
//	vmcred-transfer-list 1 COUNT INVOCATION
//	key HEX64
//	BYTES HEX64 NAME          a line for each value, by name
//	end HEX64                 the keyed digest of all that stands before this line
package transfer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmcred/vmcred/secret"
)

const (
	// MaxSize is the longest list: of as many credentials as there can be, with the
	// longest names.
	MaxSize = 512 << 10

	title    = "vmcred-transfer-list 1 "
	keyBytes = 32
	hexLen   = 2 * keyBytes
	keyLine  = len("key ") + hexLen + len("\n")
	endLine  = len("end ") + hexLen + len("\n")
	endOf    = "end of the list"
)

// Encode makes the list of values by name, in the arena, with a fresh key. It is for one
// start of a unit, whose invocation it names: 32 hexadecimal digits, or "".
func Encode(a *secret.Arena, invocation string, values map[string]*secret.Value) (*secret.Value, error) {
	raw, err := a.Make(keyBytes, func(b []byte) (int, error) { return len(b), secret.Random(b) })
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	var key *secret.Key
	if err := raw.Use(func(b []byte) (err error) { key, err = a.Key(b); return err }); err != nil {
		return nil, err
	}
	defer key.Close()
	var lines []byte // no secret without the key
	for _, name := range slices.Sorted(maps.Keys(values)) {
		d := values[name].Digest(key, name)
		if d.IsZero() {
			return nil, secret.ErrWiped
		}
		lines = fmt.Appendf(lines, "%d %s %s\n", values[name].Len(), d, name)
	}
	head := fmt.Sprintf("%s%d %s\n", title, len(values), orNone(invocation))
	if size := len(head) + keyLine + len(lines) + endLine; size > MaxSize {
		return nil, fmt.Errorf("a transfer list of %d bytes is longer than %d", size, MaxSize)
	}
	body, err := a.Make(len(head)+keyLine+len(lines), func(b []byte) (int, error) {
		n := copy(b, head)
		n += copy(b[n:], "key ")
		if err := raw.Use(func(k []byte) error { n += hex.Encode(b[n:], k); return nil }); err != nil {
			return 0, err
		}
		n += copy(b[n:], "\n")
		return n + copy(b[n:], lines), nil
	})
	if err != nil {
		return nil, err
	}
	defer body.Wipe()
	end := body.Digest(key, endOf)
	return a.Make(body.Len()+endLine, func(b []byte) (int, error) {
		n := 0
		if err := body.Use(func(text []byte) error { n = copy(b, text); return nil }); err != nil {
			return 0, err
		}
		return n + copy(b[n:], "end "+end.String()+"\n"), nil
	})
}

func orNone(invocation string) string {
	if invocation == "" {
		return "-"
	}
	return invocation
}

// List is one that was received. Close it.
type List struct {
	Invocation string // of the start it was made for; empty: not said
	entries    map[string]entry
	key        *secret.Key
}

type entry struct {
	bytes  int
	digest string
}

// CutError is a list, or a value on it, that did not arrive as it was sent. Trying again
// may help.
type CutError struct {
	Name string // of the value; empty: the list itself
	What string
}

// Error says what arrived.
func (e *CutError) Error() string {
	if e.Name == "" {
		return "the transfer list " + e.What
	}
	return e.Name + ": " + e.What
}

// Hint says what to do about it.
func (e *CutError) Hint() string {
	return "the broker ended while it handed the values over, or somebody else answered for it: start the unit again; journalctl --unit vmcred-broker.service"
}

// Parse reads a list, in place; the key goes into the arena. The error is a *CutError.
func Parse(a *secret.Arena, v *secret.Value) (*List, error) {
	var l *List
	err := v.Use(func(b []byte) (err error) {
		l, err = parse(a, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func broken(format string, args ...any) error { return &CutError{What: fmt.Sprintf(format, args...)} }

func parse(a *secret.Arena, b []byte) (*List, error) {
	switch {
	case len(b) == 0:
		return nil, broken("is empty")
	case len(b) > MaxSize:
		return nil, broken("is longer than %d bytes", MaxSize)
	case !bytes.HasPrefix(b, []byte(title)) && !bytes.HasPrefix([]byte(title), b):
		return nil, broken("is none, or one of another version of vmcred")
	}
	if len(b) < endLine || b[len(b)-1] != '\n' || !bytes.HasPrefix(b[len(b)-endLine:], []byte("end ")) {
		return nil, broken("is cut: its end is missing")
	}
	body, end := b[:len(b)-endLine], string(b[len(b)-hexLen-1:len(b)-1])
	head, rest, _ := bytes.Cut(body, []byte("\n"))
	if len(rest) < keyLine || !bytes.HasPrefix(rest, []byte("key ")) || rest[keyLine-1] != '\n' {
		return nil, broken("is cut: its key is missing")
	}
	key, err := readKey(a, rest[len("key "):keyLine-1])
	if err != nil {
		return nil, err
	}
	l := &List{key: key}
	if err := l.verify(a, body, end); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.read(string(head), rest[keyLine:]); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func readKey(a *secret.Arena, text []byte) (*secret.Key, error) {
	raw, err := a.Make(keyBytes, func(b []byte) (int, error) { return hex.Decode(b, text) })
	if err != nil {
		var lock *secret.LockError
		if errors.As(err, &lock) {
			return nil, err
		}
		return nil, broken("was changed: its key is none") // hex's error would show a part of it
	}
	defer raw.Wipe()
	var key *secret.Key
	err = raw.Use(func(b []byte) (err error) { key, err = a.Key(b); return err })
	return key, err
}

// verify compares the list with its own end.
func (l *List) verify(a *secret.Arena, body []byte, end string) error {
	text, err := a.Make(len(body), func(b []byte) (int, error) { return copy(b, body), nil })
	if err != nil {
		return err
	}
	defer text.Wipe()
	if text.Digest(l.key, endOf).String() != end {
		return broken("was changed on its way: it is not what its end says")
	}
	return nil
}

// read takes what was found to be whole, so only another version's can be wrong.
func (l *List) read(head string, lines []byte) error {
	count, invocation, ok := strings.Cut(strings.TrimPrefix(head, title), " ")
	n, err := strconv.Atoi(count)
	if !ok || err != nil {
		return broken("has another form")
	}
	if invocation != "-" {
		l.Invocation = invocation
	}
	l.entries = make(map[string]entry, min(n, 1<<10))
	for line := range strings.Lines(string(lines)) {
		size, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		digest, name, ok := strings.Cut(rest, " ")
		bytes, err := strconv.Atoi(size)
		if !ok || err != nil || len(digest) != hexLen || name == "" {
			return broken("has another form")
		}
		l.entries[name] = entry{bytes, digest}
	}
	if len(l.entries) != n {
		return broken("names %d values, and says %d", len(l.entries), n)
	}
	return nil
}

// Names are the values on the list, sorted.
func (l *List) Names() []string { return slices.Sorted(maps.Keys(l.entries)) }

// Has reports whether a value is on the list.
func (l *List) Has(name string) bool {
	_, ok := l.entries[name]
	return ok
}

// Verify compares a value that arrived with the list; nil is one that did not arrive. The
// error is a *CutError. What is not on the list came another way, and is not its matter.
func (l *List) Verify(name string, v *secret.Value) error {
	e, ok := l.entries[name]
	switch {
	case !ok:
		return nil
	case v == nil:
		return &CutError{name, fmt.Sprintf("it did not arrive: the broker sent %d bytes", e.bytes)}
	case v.Len() != e.bytes:
		return &CutError{name, fmt.Sprintf("%d bytes arrived, and the broker sent %d", v.Len(), e.bytes)}
	case v.Digest(l.key, name).String() != e.digest:
		return &CutError{name, fmt.Sprintf("its %d bytes are not those that the broker sent", e.bytes)}
	}
	return nil
}

// Close wipes the key.
func (l *List) Close() error {
	if l == nil {
		return nil
	}
	return l.key.Close()
}
