// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/secret"
)

func testKey(t testing.TB) *ratchet {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { _ = a.Close() })
	v, err := copied(a, bytes.Repeat([]byte{7}, keyLen))
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRatchet(a, 0, v)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSealRandom: every record comes back as it was, on one line.
func TestSealRandom(t *testing.T) {
	k := testKey(t)
	rng := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		b := make([]rune, rng.IntN(60))
		for i := range b {
			b[i] = []rune{'a', '"', '\\', '\n', 0, '\u2028', '<', 'é', '}', '\U0001F600', 0x7f}[rng.IntN(11)]
		}
		return string(b)
	}
	for range 2000 {
		r := Record{
			Seq: rng.Uint64() | 1, Time: time.Unix(rng.Int64N(1<<33), rng.Int64N(1e9)).UTC(), Boot: text(), Host: text(), Batch: rng.Uint64(),
			Item: 1, Of: 1 + rng.IntN(9), Op: Operations()[rng.IntN(len(Operations()))], VM: text(), Version: text(), Digest: text(),
			Decision: Allow, Reason: text(), Lost: rng.Int64(), Cut: text(),
		}
		if rng.IntN(2) == 0 {
			r.By = &Who{UID: rng.Int(), PID: rng.Int(), Start: rng.Uint64(), Unit: text(), Invocation: text()}
			r.Credential = &Credential{Host: text(), Guest: text(), Bytes: rng.Int(), Channel: text()}
		}
		line, hash, err := seal(nil, &r, k)
		if err != nil || bytes.Count(line, []byte("\n")) != 1 {
			t.Fatal(err, line)
		}
		s, err := unseal(line[:len(line)-1])
		if err != nil || s.hash != hash || !reflect.DeepEqual(s.Record, r) || k.mac(s.body) != s.mac {
			t.Fatalf("%v: %+v for %+v", err, s.Record, r)
		}
	}
}

// TestLongTexts are shortened, and the record still fits.
func TestLongTexts(t *testing.T) {
	long := strings.Repeat("\x01", 100000)
	e := Entry{By: &Who{Unit: long, Invocation: long}, VM: long, Credential: &Credential{Host: long, Guest: long, Channel: long}, Version: long, Reason: long + "é"}
	r := e.record()
	r.Seq, r.Item, r.Of = 1, 1, 1
	if _, _, err := seal(nil, &r, testKey(t)); err != nil || len(r.Reason) > maxText {
		t.Error(err, len(r.Reason))
	}
}

func FuzzUnseal(f *testing.F) {
	k := testKey(f)
	line, _, err := seal(nil, &Record{Seq: 1, Item: 1, Of: 1, Op: Release, VM: "a"}, k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line[:len(line)-1])
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := unseal(b)
		if err != nil {
			return
		}
		// What is accepted is what was hashed: another last digit is not.
		c := bytes.Clone(b)
		c[len(c)-len(lineEnd)-1] ^= 1
		if _, err := unseal(c); err == nil || s.Seq == 0 {
			t.Errorf("%q is accepted, too", c)
		}
	})
}

// FuzzReader: whatever stands in the files, reading ends, and nothing is added to
// what is not ours.
func FuzzReader(f *testing.F) {
	d := newMemDisk(1)
	l := newLog(d, "audit.log", Options{})
	for range 3 {
		if err := l.Append(f.Context(), Entry{Op: Release}, Entry{Op: Release}); err != nil {
			f.Fatal(err)
		}
	}
	whole, key := d.names["audit.log"].now, d.names["audit.log.key"].now
	f.Add(whole, key)
	f.Add(whole[:len(whole)-9], key)
	f.Add(append(bytes.Clone(whole), "{\"seq\""...), key)
	f.Add(append(bytes.Clone(whole), make([]byte, 5000)...), key[:100])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, log, key []byte) {
		d := newMemDisk(1)
		d.names["audit.log"], d.names["audit.log.key"] = &inode{now: bytes.Clone(log)}, &inode{now: bytes.Clone(key)}
		r := &Reader{d, "audit.log"}
		before, err := r.Verify(t.Context(), Check{})
		if err != nil {
			t.Fatal(err)
		}
		if err := newLog(d, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release}); err != nil {
			var own *Error
			if !errors.As(err, &own) || !bytes.Equal(d.names["audit.log"].now, log) {
				t.Errorf("%v; the log was changed: %v", err, !bytes.Equal(d.names["audit.log"].now, log))
			}
			return
		}
		after, err := r.Verify(t.Context(), Check{})
		if err != nil || len(after.Faults) > len(before.Faults) {
			t.Errorf("%v: %v, before %v", err, after.Faults, before.Faults)
		}
	})
}

func FuzzParseHead(f *testing.F) {
	f.Add("17:" + strings.Repeat("a0", 32))
	f.Add("017:" + strings.Repeat("a0", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := ParseHead(s); err == nil && h.String() != s {
			t.Errorf("%q is read as %s", s, h)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("vmcred-audit-key 1\nlog 00112233445566778899aabbccddeeff\nbatch 3\nkey " + strings.Repeat("a0", 32) + "\n"))
	f.Add([]byte("vmcred-audit-key 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := secret.Make(len(b), func(to []byte) (int, error) { return copy(to, b), nil })
		if err != nil {
			t.Fatal(err)
		}
		defer v.Wipe()
		k, err := ParseKey(v)
		if err != nil {
			return
		}
		defer k.Close()
		text, err := k.Text()
		if err != nil || text.Len() > MaxKeyFile {
			t.Fatal(err)
		}
		again, err := secret.Make(text.Len(), func(to []byte) (int, error) {
			n := 0
			for _, p := range text {
				n += copy(to[n:], p.Text)
				if p.Secret != nil {
					_ = p.Secret.Use(func(b []byte) error { n += copy(to[n:], b); return nil })
				}
			}
			return n, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Wipe()
		same, err := ParseKey(again)
		if err != nil || same.Log != k.Log || same.Batch != k.Batch || !same.value.Equal(k.value) {
			t.Errorf("%v: %+v for %+v", err, same, k)
		}
	})
}
