// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"sync"

	"golang.org/x/sys/unix"
)

// Digest is a keyed digest of a value. It may be printed and compared with ==.
type Digest [sha256.Size]byte

// String returns 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether there was nothing to digest: the value or the key was wiped.
func (d Digest) IsZero() bool { return d == Digest{} }

// Where things lie in a key's page, in bytes from its start.
const (
	blockSize  = sha256.BlockSize
	innerPad   = 0             // the key with HMAC's inner pad, one block
	outerPad   = blockSize     // the key with its outer pad, one block
	work       = 2 * blockSize // two blocks: what does not fill a block of its own, and the padding
	state      = 4 * blockSize // the hash's own state, marshalled
	keyPage    = 6 * blockSize
	stateMagic = 4 // bytes before the eight words of a marshalled SHA-256 state
)

// hasher is what crypto/sha256 documents of its hash.
type hasher interface {
	hash.Hash
	encoding.BinaryAppender
}

// Key keys digests. Its bytes live in locked pages. A Key may be used from
// several goroutines; they wait for each other.
type Key struct {
	_    [0]func()
	page *Value
	mu   sync.Mutex
	h    hasher // never holds a part of a block: see whole
}

// NewKey returns a key of 32 random bytes.
func NewKey() (*Key, error) {
	v, err := Make(sha256.Size, func(b []byte) (int, error) { return len(b), Random(b) })
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	defer v.Wipe()
	var k *Key
	err = v.Use(func(b []byte) error {
		k, err = KeyFrom(b)
		return err
	})
	return k, err
}

// Random fills b from the kernel itself, which writes straight into locked pages.
func Random(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Getrandom(b, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// KeyFrom returns a key made of b, 1 to 64 bytes. It keeps no reference to b and
// does not wipe it.
func KeyFrom(b []byte) (*Key, error) { return keyFrom(b, Make) }

// Key is [KeyFrom] with the key in the arena's pages.
func (a *Arena) Key(b []byte) (*Key, error) { return keyFrom(b, a.Make) }

func keyFrom(b []byte, room func(int, func([]byte) (int, error)) (*Value, error)) (*Key, error) {
	if len(b) == 0 || len(b) > blockSize {
		return nil, fmt.Errorf("a key of %d bytes: it takes 1 to %d", len(b), blockSize)
	}
	h, ok := sha256.New().(hasher)
	if !ok {
		return nil, errors.New("this build's SHA-256 cannot hand out its state")
	}
	page, err := room(keyPage, func(p []byte) (int, error) {
		for i := range blockSize {
			var c byte
			if i < len(b) {
				c = b[i]
			}
			p[innerPad+i] = c ^ 0x36
			p[outerPad+i] = c ^ 0x5c
		}
		return len(p), nil
	})
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return &Key{page: page, h: h}, nil
}

// Close wipes the key. Closing again does nothing.
func (k *Key) Close() error {
	k.page.Wipe()
	return nil
}

// String returns "secret(key)".
func (k *Key) String() string { return "secret(key)" }

// GoString is [Key.String].
func (k *Key) GoString() string { return k.String() }

// Digest returns HMAC-SHA-256 (RFC 2104) over the context's length as 8 bytes,
// big endian, the context and the value. It leaves no copy of the value or of
// the key. It is the zero Digest when v or k was wiped.
func (v *Value) Digest(k *Key, context string) Digest {
	var d Digest
	_ = k.page.Use(func(p []byte) error { // ErrWiped leaves d zero
		return v.Use(func(b []byte) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			quietly(func() { d = k.hmac(p, framed(context), b) })
			return nil
		})
	})
	return d
}

// Sum is the same of a text that is no secret: its length, the text, and no value.
func (k *Key) Sum(text []byte) Digest {
	var d Digest
	_ = k.page.Use(func(p []byte) error { // ErrWiped leaves d zero
		k.mu.Lock()
		defer k.mu.Unlock()
		quietly(func() { d = k.hmac(p, framed(text), nil) })
		return nil
	})
	return d
}

// framed is a text after its length.
func framed[T string | []byte](text T) []byte {
	b := make([]byte, 8, 8+len(text))
	binary.BigEndian.PutUint64(b, uint64(len(text)))
	return append(b, text...)
}

func (k *Key) hmac(p, prefix, value []byte) Digest {
	inner := k.sum(p, p[innerPad:innerPad+blockSize], prefix, value)
	outer := k.sum(p, p[outerPad:outerPad+blockSize], nil, inner[:])
	return outer
}

// sum hashes a block, a public text and a value. crypto/sha256 copies what does
// not fill a block into its own memory and keeps it there even after Reset; so
// it is given whole blocks only, with the padding of FIPS 180-4 written here.
func (k *Key) sum(p, block, prefix, value []byte) Digest {
	w := p[work : work+2*blockSize]
	total := uint64(blockSize+len(prefix)+len(value)) * 8

	k.h.Reset()
	k.h.Write(block)
	whole := len(prefix) / blockSize * blockSize
	k.h.Write(prefix[:whole])
	n := copy(w, prefix[whole:])
	if n > 0 && n+len(value) >= blockSize {
		c := copy(w[n:blockSize], value)
		k.h.Write(w[:blockSize])
		n, value = 0, value[c:]
	}
	if n == 0 {
		whole = len(value) / blockSize * blockSize
		k.h.Write(value[:whole])
		value = value[whole:]
	}
	n += copy(w[n:], value)

	end := blockSize
	if n+1+8 > blockSize {
		end = 2 * blockSize
	}
	clear(w[n:])
	w[n] = 0x80
	binary.BigEndian.PutUint64(w[end-8:], total)
	k.h.Write(w[:end])

	var d Digest
	s, _ := k.h.AppendBinary(p[state:state]) // documented never to fail for SHA-256
	copy(d[:], s[stateMagic:])

	// One block of zeros takes the words of the last one off the stack, where
	// the compression function without SHA instructions leaves them.
	clear(p[work:])
	k.h.Write(w[:blockSize])
	k.h.Reset()
	return d
}
