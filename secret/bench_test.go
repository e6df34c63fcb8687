// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// What a start with n credentials of 64 bytes asks of this package: read, encode,
// digest, one memory file, wipe.
func BenchmarkStart(b *testing.B) {
	for _, n := range []int{3, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			for i := range n {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 64), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			key, err := NewKey()
			if err != nil {
				b.Fatal(err)
			}
			defer key.Close()
			for b.Loop() {
				if err := start(dir, n, key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func start(dir string, n int, key *Key) error {
	a := NewArena()
	var r Rope
	for i := range n {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return err
		}
		v, err := a.Read(f, 1<<20)
		if err != nil {
			return err
		}
		f.Close()
		v.Digest(key, "name")
		encoded, err := a.Base64(v)
		if err != nil {
			return err
		}
		r = append(r, Piece{Text: "name="}, Piece{Secret: encoded})
	}
	m, err := NewMemfd("bench", r)
	if err != nil {
		return err
	}
	if err := m.Release(); err != nil {
		return err
	}
	return a.Close()
}

func BenchmarkDigest(b *testing.B) {
	a := NewArena()
	defer a.Close()
	key, err := NewKey()
	if err != nil {
		b.Fatal(err)
	}
	defer key.Close()
	v, err := a.Make(64, func(b []byte) (int, error) { return len(b), nil })
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		v.Digest(key, "name")
	}
}

func BenchmarkUse(b *testing.B) {
	a := NewArena()
	defer a.Close()
	v, err := a.Make(64, func(b []byte) (int, error) { return len(b), nil })
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = v.Use(func([]byte) error { return nil })
	}
}
