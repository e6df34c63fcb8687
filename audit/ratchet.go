// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"crypto/sha256"
	"errors"

	"github.com/vmcred/vmcred/secret"
)

const keyLen = sha256.Size

// nextKey is what a key hashes to get the next one. No record begins like it.
const nextKey = "vmcred audit: the next key"

// ratchet is the key of one batch's MACs. There is no way back from the next one.
type ratchet struct {
	batch uint64
	value *secret.Value // keyLen bytes
	key   *secret.Key
}

// newRatchet takes the value over; what it makes of it is in the arena.
func newRatchet(a *secret.Arena, batch uint64, v *secret.Value) (*ratchet, error) {
	r := &ratchet{batch: batch, value: v}
	err := v.Use(func(b []byte) error {
		if len(b) != keyLen {
			return errors.New("not a key")
		}
		var err error
		r.key, err = a.Key(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// mac is HMAC-SHA-256 over the text's length and the text, see [secret.Key.Sum].
func (r *ratchet) mac(text []byte) secret.Digest { return r.key.Sum(text) }

// next is the key of the next batch, in the arena. The caller closes this one.
func (r *ratchet) next(a *secret.Arena) (*ratchet, error) {
	v, err := a.Make(keyLen, func(b []byte) (int, error) {
		d := r.key.Sum([]byte(nextKey))
		defer clear(d[:])
		if d.IsZero() {
			return 0, secret.ErrWiped
		}
		return copy(b, d[:]), nil
	})
	if err != nil {
		return nil, err
	}
	return newRatchet(a, r.batch+1, v)
}

func (r *ratchet) close() {
	if r != nil {
		r.value.Wipe()
		_ = r.key.Close() // wiping cannot fail
	}
}
