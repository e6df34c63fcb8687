// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestDigestIsHMAC(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keyBytes := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "key")
		context := rapid.StringN(-1, -1, 200).Draw(t, "context")
		value := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value")

		h := hmac.New(sha256.New, keyBytes)
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(context))))
		h.Write([]byte(context))
		h.Write(value)

		key, err := KeyFrom(keyBytes)
		if err != nil {
			t.Fatal(err)
		}
		defer key.Close()
		v, err := Make(len(value), func(b []byte) (int, error) { return copy(b, value), nil })
		if err != nil {
			t.Fatal(err)
		}
		defer v.Wipe()
		for range 2 { // the second time finds what the first left in the key's page
			if got := v.Digest(key, context); got != Digest(h.Sum(nil)) {
				t.Fatalf("%v, not %x", got, h.Sum(nil))
			}
		}
	})
}

func TestKeys(t *testing.T) {
	v := testValue(t, testArena(t), plain)
	a, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if v.Digest(a, "") == v.Digest(b, "") {
		t.Error("two new keys are the same")
	}
	if v.Digest(a, "x") == v.Digest(a, "y") {
		t.Error("the context does not matter")
	}
	want := v.Digest(a, "x")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if v.Digest(a, "x") != want {
				t.Error("digests from several goroutines differ")
			}
		})
	}
	all.Wait()
	for range 2 {
		if err := a.Close(); err != nil || !v.Digest(a, "").IsZero() {
			t.Errorf("a closed key still digests (%v)", err)
		}
	}
	for _, n := range []int{0, 65} {
		if _, err := KeyFrom(make([]byte, n)); err == nil {
			t.Errorf("a key of %d bytes", n)
		}
	}
	_ = b.Close()
}

// TestSum is a value's digest without a value.
func TestSum(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Make(0, func([]byte) (int, error) { return 0, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer v.Wipe()
	if got := k.Sum([]byte("a text")); got != v.Digest(k, "a text") || got == k.Sum([]byte("a tex")) || got.IsZero() {
		t.Errorf("%s", got)
	}
	if err := k.Close(); err != nil || !k.Sum([]byte("a text")).IsZero() {
		t.Errorf("a wiped key sums: %v", err)
	}
}
