// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/vmcred/vmcred/secret"
)

// Kind says what an item of a set is.
type Kind int

// The kinds of items.
const (
	Secret    Kind = iota // its value lives in locked pages only
	Static                // not secret, stands in the VM's file
	OEMString             // an SMBIOS string that is no credential of ours
)

// String returns "secret", "static" or "oem-string".
func (k Kind) String() string {
	switch k {
	case Secret:
		return "secret"
	case Static:
		return "static"
	case OEMString:
		return "oem-string"
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// MarshalText returns the same words, for JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads one of these words.
func (k *Kind) UnmarshalText(b []byte) error {
	for _, x := range []Kind{Secret, Static, OEMString} {
		if x.String() == string(b) {
			*k = x
			return nil
		}
	}
	return fmt.Errorf("unknown kind of credential %q", b)
}

// Meta is all that a plan needs to know of an item: names and lengths, no value.
type Meta struct {
	Host            string `json:"host,omitempty"`   // name on the host; empty unless Kind is Secret
	Guest           string `json:"guest,omitempty"`  // name in the guest; empty for an OEM string that is no credential
	Kind            Kind   `json:"kind"`             //
	Len             int    `json:"bytes"`            // of the value; of the whole string for an OEM string
	Text            bool   `json:"text"`             // static, and the same in the guest when sent as text in an SMBIOS string
	Escaped         int    `json:"-"`                // bytes of a static value or OEM string within a JSON text; -1 if it is not UTF-8
	TrailingNewline bool   `json:"trailing_newline"` // the value ends with a newline, which is part of it
}

// Item is one entry of a Set.
type Item struct {
	Meta
	value *secret.Value
	text  string
}

// Value returns a secret's value, nil for the other kinds. It stays the set's.
func (it Item) Value() *secret.Value { return it.value }

// Static returns the value that is not secret, or the OEM string.
func (it Item) Static() string { return it.text }

// Rope returns the value as it is.
func (it Item) Rope() secret.Rope {
	switch {
	case it.value != nil:
		return secret.Rope{{Secret: it.value}}
	case it.text != "":
		return secret.Rope{{Text: it.text}}
	}
	return nil
}

// ClashError is two items of a set that would have one name in the guest, where
// the first wins and the other is dropped without a word.
type ClashError struct {
	Guest         string
	First, Second string // "host-api-key", "static HOST_API_KEY", …
}

// Error names both.
func (e *ClashError) Error() string {
	return fmt.Sprintf("%s and %s are both %s in the guest", e.First, e.Second, e.Guest)
}

// Hint says how to tell them apart.
func (e *ClashError) Hint() string {
	return "drop one of them, or give one another guest name with \"as:\""
}

// OEMStringError is an OEM string that would not arrive as it was written.
type OEMStringError struct{ Reason string }

// Error says what is wrong with the string, without the string.
func (e *OEMStringError) Error() string { return "OEM string: " + e.Reason }

// Hint says what to do about it.
func (e *OEMStringError) Hint() string {
	return "put a credential under \"static:\" or \"credentials:\" instead of \"oem-strings:\""
}

// Set is what one VM is to get: secrets and static credentials by guest name,
// and OEM strings. Not safe for concurrent use.
type Set struct {
	items  []Item // sorted: credentials by guest name, then OEM strings as they came
	owners map[string]string
}

// NewSet returns an empty set.
func NewSet() *Set { return &Set{owners: map[string]string{}} }

// AddSecret adds a secret that is called host on the host and guest in the VM.
// An error is a *NameError, a *ClashError or about the value; the value then
// stays the caller's, else the set wipes it when it is closed.
func (s *Set) AddSecret(host, guest string, v *secret.Value) error {
	if err := CheckName(host); err != nil {
		return err
	}
	newline := false
	err := v.Use(func(b []byte) error {
		if len(b) > MaxValue {
			return &secret.TooLargeError{Max: MaxValue}
		}
		newline = len(b) > 0 && b[len(b)-1] == '\n'
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	m := Meta{Host: host, Guest: guest, Kind: Secret, Len: v.Len(), TrailingNewline: newline}
	return s.add(Item{Meta: m, value: v}, host)
}

// AddStatic adds a credential that is not secret. An error is a *NameError, a
// *ClashError or a *secret.TooLargeError.
func (s *Set) AddStatic(name, value string) error {
	if len(value) > MaxValue {
		return fmt.Errorf("%s: %w", name, &secret.TooLargeError{Max: MaxValue})
	}
	m := Meta{
		Guest: name, Kind: Static, Len: len(value),
		Text:            safeText(value),
		Escaped:         JSONLen(value),
		TrailingNewline: strings.HasSuffix(value, "\n"),
	}
	return s.add(Item{Meta: m, text: value}, "static "+name)
}

// safeText says whether a value is the same after its way through an SMBIOS
// string, a VMM's JSON and the guest: no NUL, which would end it, and UTF-8.
func safeText(v string) bool {
	return v != "" && strings.IndexByte(v, 0) < 0 && utf8.ValidString(v)
}

// AddOEMString adds an SMBIOS string as it is. An empty one, one with a NUL, and
// one that looks like a credential but that systemd would not take are an
// *OEMStringError; one that is a credential which the set already has is a
// *ClashError.
func (s *Set) AddOEMString(v string) error {
	if v == "" {
		return &OEMStringError{"it is empty, which would hide every string after it"}
	}
	if strings.IndexByte(v, 0) >= 0 {
		return &OEMStringError{"it holds a NUL, which would split it"}
	}
	name, ok, err := parseOEMString(v)
	if err != nil {
		return &OEMStringError{"it begins like a credential, but " + err.Error()}
	}
	m := Meta{Kind: OEMString, Len: len(v), Text: true, Escaped: JSONLen(v), TrailingNewline: strings.HasSuffix(v, "\n")}
	if !ok {
		s.items = append(s.items, Item{Meta: m, text: v})
		return nil
	}
	m.Guest = name
	return s.add(Item{Meta: m, text: v}, "OEM string "+textPrefix+name)
}

func (s *Set) add(it Item, owner string) error {
	if err := CheckName(it.Guest); err != nil {
		return err
	}
	if first, taken := s.owners[it.Guest]; taken {
		return &ClashError{Guest: it.Guest, First: first, Second: owner}
	}
	s.owners[it.Guest] = owner
	if it.Kind == OEMString {
		s.items = append(s.items, it)
		return nil
	}
	at, _ := slices.BinarySearchFunc(s.items, it.Meta, func(a Item, m Meta) int { return Compare(a.Meta, m) })
	s.items = slices.Insert(s.items, at, it)
	return nil
}

// Compare orders items as a set does: credentials by guest name, then OEM
// strings, which are all equal because they stay in the order they came.
func Compare(a, b Meta) int {
	aOEM, bOEM := a.Kind == OEMString, b.Kind == OEMString
	switch {
	case aOEM && bOEM:
		return 0
	case aOEM:
		return 1
	case bOEM:
		return -1
	}
	return cmp.Compare(a.Guest, b.Guest)
}

// Len returns the number of items.
func (s *Set) Len() int { return len(s.items) }

// Items returns the items in order. The values stay the set's.
func (s *Set) Items() []Item { return slices.Clone(s.items) }

// Metas returns what a plan needs to know, in the same order.
func (s *Set) Metas() []Meta {
	out := make([]Meta, len(s.items))
	for i, it := range s.items {
		out[i] = it.Meta
	}
	return out
}

// Close wipes every value. Closing again does nothing.
func (s *Set) Close() error {
	for _, it := range s.items {
		it.value.Wipe()
	}
	return nil
}
