// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/secret"
)

// firstHandle is the handle of the first structure; the next ones follow. QEMU
// and SeaBIOS keep this range free.
const firstHandle = 0x0B00

// Blob is one fw_cfg item: the key that the guest finds it under, and the value.
type Blob struct {
	Name string
	Rope secret.Rope
}

// Payload is a set, encoded. The secrets in FwCfg are the set's own, so the set
// must stay open as long as the payload is used.
type Payload struct {
	SMBIOS  []secret.Rope // raw structures in order
	Strings []secret.Rope // the same OEM strings in order, for a VMM that builds the table itself
	FwCfg   []Blob
	arena   *secret.Arena
}

// Close wipes the encodings. The set's values stay as they are.
func (p *Payload) Close() error { return p.arena.Close() }

// ErrMismatch is a set that is not the one the plan was made for.
var ErrMismatch = errors.New("the credentials are not those that were planned")

// Encode encodes the set as planned. The error is ErrMismatch if its names or
// lengths are others than in the plan.
func (p Plan) Encode(s *credential.Set) (*Payload, error) {
	items := s.Items()
	if len(items) != len(p.Entries) {
		return nil, fmt.Errorf("%w: %d of them, planned were %d", ErrMismatch, len(items), len(p.Entries))
	}
	out := &Payload{arena: secret.NewArena()}
	if err := p.encode(items, out); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

func (p Plan) encode(items []credential.Item, out *Payload) error {
	structs := make([][]secret.Rope, p.Structs)
	last := -1
	for i, it := range items {
		e := &p.Entries[i]
		if err := e.match(it); err != nil {
			return err
		}
		switch {
		case e.Channel == FwCfg:
			b, err := blob(it)
			if err != nil {
				return err
			}
			out.FwCfg = append(out.FwCfg, b)
		case isNotify(it.Meta):
			last = i
		default:
			if err := addString(structs, e, it, out.arena); err != nil {
				return err
			}
		}
	}
	if last >= 0 {
		if err := addString(structs, &p.Entries[last], items[last], out.arena); err != nil {
			return err
		}
	}
	for i, strs := range structs {
		r, err := credential.Type11(uint16(firstHandle+i), strs)
		if err != nil {
			return fmt.Errorf("SMBIOS structure %d: %w", i, err)
		}
		out.SMBIOS = append(out.SMBIOS, r)
		out.Strings = append(out.Strings, strs...)
	}
	return nil
}

// match says whether an item is the one that was planned.
func (e *Entry) match(it credential.Item) error {
	name := it.Guest
	if it.Kind == credential.OEMString {
		name = "an OEM string"
	}
	switch {
	case e.Guest != it.Guest || e.Host != it.Host || e.Kind != it.Kind || e.Meta.Text != it.Meta.Text:
		return fmt.Errorf("%w: %s was not", ErrMismatch, name)
	case e.Len != it.Len || it.Rope().Len() != it.Len:
		return fmt.Errorf("%w: %s has %d bytes, planned were %d", ErrMismatch, name, it.Rope().Len(), e.Len)
	}
	return nil
}

func blob(it credential.Item) (Blob, error) {
	key, err := credential.FwCfgName(it.Guest)
	if err != nil {
		return Blob{}, err
	}
	if v := it.Value(); v != nil { // a wiped value looks like an empty one
		if err := v.Use(func([]byte) error { return nil }); err != nil {
			return Blob{}, fmt.Errorf("%s: %w", it.Guest, err)
		}
	}
	return Blob{Name: key, Rope: it.Rope()}, nil
}

func addString(structs [][]secret.Rope, e *Entry, it credential.Item, a *secret.Arena) error {
	if e.Channel != SMBIOS || e.Struct < 0 || e.Struct >= len(structs) {
		return fmt.Errorf("%w: no channel for %s", ErrMismatch, it.Guest)
	}
	r, err := oemString(e, it, a)
	if err != nil {
		return fmt.Errorf("%s: %w", it.Guest, err)
	}
	if r.Len()+1 != e.Encoded {
		return fmt.Errorf("%s: %d bytes as encoded, planned were %d", it.Guest, r.Len()+1, e.Encoded)
	}
	structs[e.Struct] = append(structs[e.Struct], r)
	return nil
}

func oemString(e *Entry, it credential.Item, a *secret.Arena) (secret.Rope, error) {
	switch {
	case it.Kind == credential.OEMString:
		return secret.Rope{{Text: it.Static()}}, nil
	case e.Text:
		return secret.Rope{{Text: credential.TextString(it.Guest, it.Static())}}, nil
	}
	v := it.Value()
	if it.Kind == credential.Static {
		raw, err := a.Make(it.Len, func(b []byte) (int, error) { return copy(b, it.Static()), nil })
		if err != nil {
			return nil, err
		}
		v = raw
	}
	encoded, err := a.Base64(v)
	if err != nil {
		return nil, err
	}
	return credential.BinaryString(it.Guest, encoded), nil
}
