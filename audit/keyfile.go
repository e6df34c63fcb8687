// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"

	"github.com/vmcred/vmcred/secret"
)

// keySuffix is that of the key's file beside the log.
const keySuffix = ".key"

// The key's file has two slots in blocks of their own. A new key goes into the slot
// that is not in use, and only when it is durable there the old one is overwritten:
// so a crash leaves one whole slot, and no old key stays, as far as the file system
// and the disk write in place.
const (
	slotStep = 4096
	slotSize = 512
)

// Where things lie in a slot. What follows the check is zero.
const (
	slotMagic  = "vmcred-audit-k1\n"
	atID       = 16
	atBatch    = 32
	atSeq      = 40
	atHash     = 48
	atStart    = 80
	atLast     = 88
	atEnd      = 96
	atDigest   = 104
	atKey      = atDigest + keyLen
	atCheck    = atKey + keyLen
	slotLength = atCheck + keyLen
)

// position is where the log ends as far as its key's file knows: every key before
// it is erased.
type position struct {
	id    [16]byte
	head  Head   // Seq 0: nothing is written yet
	start uint64 // the first record of the file that is written to
	last  int64  // where the head's line begins in that file, in bytes
	end   int64  // where it ends
}

// keys are what a slot holds beside.
type keys struct {
	position
	a      *secret.Arena // where they are
	digest *secret.Value // the key of digests: it stays as long as the log
	ratchet
}

func (p *position) log() string { return hex.EncodeToString(p.id[:]) }

func (k *keys) close() {
	if k != nil {
		k.digest.Wipe()
		k.ratchet.close()
	}
}

// newKeys begins a log.
func newKeys(a *secret.Arena) (*keys, error) {
	k := &keys{a: a}
	id, err := random(a, len(k.id))
	if err != nil {
		return nil, err
	}
	defer id.Wipe()
	if err := id.Use(func(b []byte) error { copy(k.id[:], b); return nil }); err != nil {
		return nil, err
	}
	if k.digest, err = random(a, keyLen); err != nil {
		return nil, err
	}
	v, err := random(a, keyLen)
	if err != nil {
		return nil, err
	}
	r, err := newRatchet(a, 0, v)
	if err != nil {
		return nil, err
	}
	k.ratchet = *r
	return k, nil
}

// readSlot reads the slot at off. It is nil if that holds no key, or a part of one.
func readSlot(a *secret.Arena, f file, off int64) (*keys, error) {
	v, err := a.Make(slotSize, func(b []byte) (int, error) {
		_, err := f.ReadAt(b, off)
		if errors.Is(err, io.EOF) {
			err = nil // a part, or nothing: zeros
		}
		return len(b), err
	})
	if err != nil {
		return nil, err
	}
	defer v.Wipe()
	var k *keys
	err = v.Use(func(b []byte) error {
		if !bytes.HasPrefix(b, []byte(slotMagic)) {
			return nil
		}
		var err error
		k, err = parseSlot(a, b)
		return err
	})
	return k, err
}

func parseSlot(a *secret.Arena, b []byte) (*keys, error) {
	u := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	k := &keys{a: a, position: position{
		head: Head{Seq: u(atSeq), Hash: Hash(b[atHash:])}, start: u(atStart), last: int64(u(atLast)), end: int64(u(atEnd)),
	}}
	copy(k.id[:], b[atID:])
	value, err := copied(a, b[atKey:atCheck])
	if err != nil {
		return nil, err
	}
	r, err := newRatchet(a, u(atBatch), value)
	if err != nil {
		return nil, err
	}
	k.ratchet = *r
	if k.digest, err = copied(a, b[atDigest:atKey]); err != nil {
		return nil, err
	}
	check, err := k.check(b)
	if err != nil {
		return nil, err
	}
	if check != secret.Digest(b[atCheck:slotLength]) || k.last < 0 || k.end < k.last {
		k.close()
		return nil, nil
	}
	return k, nil
}

// check tells a whole slot from a part of one: a MAC under the slot's own key.
func (k *keys) check(slot []byte) (secret.Digest, error) {
	v, err := copied(k.a, slot[:atKey])
	if err != nil {
		return secret.Digest{}, err
	}
	defer v.Wipe()
	return v.Digest(k.key, "vmcred audit: a slot"), nil
}

// writeSlot makes the slot at off durable.
func (k *keys) writeSlot(f file, off int64) error {
	v, err := k.a.Make(slotSize, func(b []byte) (int, error) { return len(b), k.fill(b) })
	if err != nil {
		return err
	}
	defer v.Wipe()
	return v.Use(func(b []byte) error {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		return f.Sync()
	})
}

func (k *keys) fill(b []byte) error {
	put := func(at int, u uint64) { binary.LittleEndian.PutUint64(b[at:], u) }
	copy(b, slotMagic)
	copy(b[atID:], k.id[:])
	put(atBatch, k.batch)
	put(atSeq, k.head.Seq)
	copy(b[atHash:], k.head.Hash[:])
	put(atStart, k.start)
	put(atLast, uint64(k.last))
	put(atEnd, uint64(k.end))
	into := func(at int, v *secret.Value) error {
		return v.Use(func(from []byte) error { copy(b[at:], from); return nil })
	}
	if err := errors.Join(into(atDigest, k.digest), into(atKey, k.value)); err != nil {
		return err
	}
	check, err := k.check(b)
	copy(b[atCheck:], check[:])
	return err
}

// eraseSlot overwrites a key that is not to be known any more.
func eraseSlot(f file, off int64) error {
	if _, err := f.WriteAt(make([]byte, slotSize), off); err != nil {
		return err
	}
	return f.Sync()
}

// readKeys returns the newest whole slot and where it is; nil if there is none. If
// a crash has left an older one it says so.
func readKeys(arena *secret.Arena, f file) (k *keys, off int64, older bool, err error) {
	a, err := readSlot(arena, f, 0)
	if err != nil {
		return nil, 0, false, err
	}
	b, err := readSlot(arena, f, slotStep)
	switch {
	case err != nil:
		a.close()
		return nil, 0, false, err
	case b == nil:
		return a, 0, false, nil
	case a == nil:
		return b, slotStep, false, nil
	case a.batch > b.batch:
		b.close()
		return a, 0, true, nil
	}
	a.close()
	return b, slotStep, true, nil
}

func copied(a *secret.Arena, b []byte) (*secret.Value, error) {
	return a.Make(len(b), func(to []byte) (int, error) { return copy(to, b), nil })
}

func copiedValue(a *secret.Arena, k *Key) (*secret.Value, error) {
	var v *secret.Value
	err := k.value.Use(func(b []byte) error {
		var err error
		v, err = copied(a, b)
		return err
	})
	return v, err
}
