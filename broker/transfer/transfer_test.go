// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/secret"
)

const invocation = "0123456789abcdef0123456789abcdef"

func arena(t testing.TB) *secret.Arena {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func value(t testing.TB, a *secret.Arena, text string) *secret.Value {
	t.Helper()
	v, err := a.Read(strings.NewReader(text), MaxSize)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// text is the list as a string, which only a test may have.
func text(t testing.TB, v *secret.Value) string {
	t.Helper()
	var s string
	if err := v.Use(func(b []byte) error { s = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t testing.TB, a *secret.Arena, of map[string]string) (string, map[string]*secret.Value) {
	t.Helper()
	values := map[string]*secret.Value{}
	for name, s := range of {
		values[name] = value(t, a, s)
	}
	v, err := Encode(a, invocation, values)
	if err != nil {
		t.Fatal(err)
	}
	return text(t, v), values
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		a := secret.NewArena()
		of := map[string]string{}
		for i := range r.IntN(300) {
			of[fmt.Sprintf("c %d%s", i, strings.Repeat("x", r.IntN(200)))] = strings.Repeat("v", r.IntN(50))
		}
		s, values := encode(t, a, of)
		l, err := Parse(a, value(t, a, s))
		if err != nil {
			t.Fatal(err)
		}
		if l.Invocation != invocation || len(l.Names()) != len(of) || !slices.IsSorted(l.Names()) {
			t.Errorf("%q: %d names of %d", l.Invocation, len(l.Names()), len(of))
		}
		for name, v := range values {
			if err := l.Verify(name, v); err != nil || !l.Has(name) {
				t.Error(err)
			}
			var cut *CutError
			for _, other := range []*secret.Value{nil, value(t, a, of[name]+"x"), value(t, a, strings.Repeat("w", len(of[name])))} {
				if len(of[name]) == 0 && other != nil && other.Len() == 0 {
					continue
				}
				if err := l.Verify(name, other); !errors.As(err, &cut) || cut.Name != name {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if err := l.Verify("another", nil); err != nil || l.Has("another") {
			t.Error(err)
		}
		_ = errors.Join(l.Close(), a.Close())
	}
}

// Equal values of two names, and of two lists, have no digest in common.
func TestDigestsSayNothing(t *testing.T) {
	a := arena(t)
	of := map[string]string{"a": "same", "b": "same"}
	s1, _ := encode(t, a, of)
	s2, _ := encode(t, a, of)
	seen := map[string]bool{}
	for line := range strings.Lines(s1 + s2) {
		for _, word := range strings.Fields(line) {
			if len(word) == hexLen && seen[word] {
				t.Errorf("twice: %s", word)
			}
			seen[word] = len(word) == hexLen
		}
	}
}

// Every cut, and every byte that is another one, is found, and no word of it is said.
func TestEveryCutIsFound(t *testing.T) {
	a := arena(t)
	s, _ := encode(t, a, map[string]string{"host-api-key": "one", "host-db-password": "two", "e": ""})
	key := strings.Fields(s)[5]
	if len(key) != hexLen {
		t.Fatalf("%q is no key", key)
	}
	try := func(what, s string) {
		t.Helper()
		b := secret.NewArena()
		defer b.Close()
		l, err := Parse(b, value(t, b, s))
		var cut *CutError
		if !errors.As(err, &cut) || l != nil || cut.Name != "" || cut.Hint() == "" {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && strings.Contains(err.Error(), key[:8]) {
			t.Errorf("%s: the key is in %q", what, err)
		}
	}
	for n := range len(s) {
		try(fmt.Sprintf("cut at %d", n), s[:n])
		b := []byte(s)
		b[n] ^= 1
		try(fmt.Sprintf("byte %d changed", n), string(b))
	}
	try("longer", s+"\n")
	try("twice", s+s)
	try("a long one", strings.Repeat("x", MaxSize))
	lines := strings.SplitAfter(s, "\n")
	try("a line less", strings.Join(slices.Delete(slices.Clone(lines), 2, 3), ""))
}

func TestTooManyNames(t *testing.T) {
	a := arena(t)
	of := map[string]*secret.Value{}
	v := value(t, a, "x")
	for i := range 1023 {
		of[fmt.Sprintf("%0255d", i)] = v
	}
	l, err := Encode(a, "", of)
	if err != nil {
		t.Fatalf("as many as a guest can have: %v", err)
	}
	if _, err := Parse(a, l); err != nil {
		t.Error(err)
	}
	for i := range 1000 {
		of[fmt.Sprintf("x%0254d", i)] = v
	}
	if _, err := Encode(a, "", of); err == nil {
		t.Error("a list that is too long is made")
	}
	v.Wipe()
	if _, err := Encode(a, "", map[string]*secret.Value{"x": v}); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	a := secret.NewArena()
	f.Cleanup(func() { _ = a.Close() })
	s, _ := encode(f, a, map[string]string{"a": "one", "b b": "two"})
	f.Add(s)
	f.Add(title + "1 -\nkey " + strings.Repeat("0", hexLen) + "\nend " + strings.Repeat("0", hexLen) + "\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		a := secret.NewSmallArena()
		defer a.Close()
		l, err := Parse(a, value(t, a, s))
		var cut *CutError
		if (l == nil) != (err != nil) || err != nil && !errors.As(err, &cut) {
			t.Errorf("%v, %v", l, err)
		}
		_ = l.Close()
	})
}
