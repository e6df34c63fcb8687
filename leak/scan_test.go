// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// appearances are the ways a value may be written, made by other code than the
// one that makes the forms.
func appearances(v []byte) map[string][]byte {
	out := map[string][]byte{
		"plain":           v,
		"hex":             []byte(hex.EncodeToString(v)),
		"upper-case hex":  []byte(strings.ToUpper(hex.EncodeToString(v))),
		"url":             []byte(strings.ReplaceAll(url.QueryEscape(string(v)), "+", "%20")),
		"url form":        []byte(url.QueryEscape(string(v))),
		"decimal, spaces": []byte(strings.Trim(fmt.Sprint(v), "[]")),
		"hex, folded":     fold([]byte(hex.EncodeToString(v)), 60, "\n"),
	}
	for in, before := range []string{"", "x", "xy"} {
		padded := append([]byte(before), v...)
		out[fmt.Sprintf("base64+%d", in)] = []byte(base64.StdEncoding.EncodeToString(padded))
		out[fmt.Sprintf("base64url+%d", in)] = []byte(base64.RawURLEncoding.EncodeToString(append(padded, "zz"...)))
		if len(v) >= 24 {
			out[fmt.Sprintf("base64+%d, folded", in)] = fold([]byte(base64.StdEncoding.EncodeToString(padded)), 76, "\r\n    ")
		}
	}
	if len(v) < 24 {
		delete(out, "hex, folded")
	}
	numbers := make([]int, len(v))
	for i, c := range v {
		numbers[i] = int(c)
	}
	list, _ := json.Marshal(numbers)
	out["decimal, commas"] = bytes.Trim(list, "[]")
	if text := string(v); strings.ToValidUTF8(text, "") == text {
		j, _ := json.Marshal(text)
		out["json"] = j[1 : len(j)-1]
		var plain bytes.Buffer
		e := json.NewEncoder(&plain)
		e.SetEscapeHTML(false)
		_ = e.Encode(text)
		out["json, not for html"] = plain.Bytes()[1 : plain.Len()-2]
	}
	return out
}

func fold(b []byte, width int, sep string) []byte {
	var out []byte
	for len(b) > width {
		out = append(append(out, b[:width]...), sep...)
		b = b[width:]
	}
	return append(out, b...)
}

func TestEveryAppearanceAtAnyPlaceIsFound(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		v := genValue().Draw(r, "value")
		n := needles(t, v)
		defer n.Close()
		pad := noise(r, rapid.IntRange(0, 3*streamRoom).Draw(r, "before"))
		after := noise(r, rapid.IntRange(0, 3000).Draw(r, "after"))
		for name, a := range appearances(v) {
			text := append(append(bytes.Clone(pad), a...), after...)
			hits := 0
			s := n.newStream(func(f *form, from, to int64) {
				if from >= int64(len(pad)) && to <= int64(len(pad)+len(a)) {
					hits++
				}
			})
			for rest := text; len(rest) > 0; {
				k := min(len(rest), rapid.IntRange(1, streamRoom).Draw(r, "chunk"))
				if err := s.write(rest[:k]); err != nil {
					r.Fatal(err)
				}
				rest = rest[k:]
			}
			if err := s.end(); err != nil {
				r.Fatal(err)
			}
			if hits == 0 {
				r.Fatalf("%s of %q not found at %d", name, v, len(pad))
			}
			for _, b := range s.buf {
				if b != 0 {
					r.Fatal("the stream's buffer is not wiped")
				}
			}
		}
	})
}

func genValue() *rapid.Generator[[]byte] {
	text := rapid.Map(rapid.StringMatching(`[ -~é☃😀"\\\n\t/+<&]{8,200}`), func(s string) []byte { return []byte(s) })
	raw := rapid.SliceOfN(rapid.Byte(), MinLen, WholeLen)
	token := rapid.Map(rapid.SliceOfN(rapid.Byte(), MinLen, 64), func(b []byte) []byte {
		return []byte(base64.StdEncoding.EncodeToString(b))
	})
	return rapid.OneOf(text, raw, token).Filter(func(v []byte) bool {
		seen := map[byte]bool{}
		for _, c := range v {
			seen[c] = true
		}
		return len(v) >= MinLen && len(v) <= WholeLen && len(seen) >= MinDistinct
	})
}

func noise(r *rapid.T, n int) []byte {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestNothingIsFoundInNoise(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 64<<20)
	for i := range text {
		text[i] = byte(rng.Uint32())
	}
	var list []Needle
	for i := range 20 {
		v := make([]byte, MinLen+rng.IntN(200))
		for j := range v {
			v[j] = byte(rng.Uint32())
		}
		list = append(list, Needle{Name: fmt.Sprint(i), Value: value(t, v)})
	}
	n, err := NewNeedles(list...)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.all(text, func(f *form, from, _ int64) { t.Errorf("%s, %s at %d", f.needle, f.name, from) }); err != nil {
		t.Fatal(err)
	}
}

func TestEachOccurrenceIsFoundOnce(t *testing.T) {
	v := []byte("correct horse battery staple")
	n := needles(t, v)
	text := bytes.Repeat(append(bytes.Clone(v), '.'), 1000)
	plain, folded := 0, 0
	s := n.newStream(func(f *form, _, _ int64) {
		switch f.name {
		case "plain":
			plain++
		case "base64":
			folded++
		}
	})
	if err := errors.Join(s.write(text), s.end()); err != nil {
		t.Fatal(err)
	}
	code := base64.StdEncoding.EncodeToString(v)
	if err := errors.Join(s.write(bytes.Repeat([]byte(code+" \n"), 1000)), s.end()); err != nil {
		t.Fatal(err)
	}
	if plain != 1000 || folded != 1000 {
		t.Errorf("plain %d, base64 %d; want 1000 each", plain, folded)
	}
}

func TestLongValuesAreFoundByTheirEnds(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	v := make([]byte, 1<<20)
	for i := range v {
		v[i] = byte(rng.Uint32())
	}
	n := needles(t, v)
	for part, text := range map[string][]byte{
		"first 128 bytes": v[:4096],
		"last 128 bytes":  []byte(base64.StdEncoding.EncodeToString(v[len(v)-1000:])),
	} {
		found := ""
		if err := n.all(text, func(f *form, _, _ int64) { found = f.part }); err != nil {
			t.Fatal(err)
		}
		if found != part {
			t.Errorf("found %q, want %q", found, part)
		}
	}
}

func TestValuesFoundByChanceAreRefused(t *testing.T) {
	for _, v := range []string{"1234567", "aaaabbbbcccc", ""} {
		_, err := NewNeedles(Needle{Name: "pin", Value: value(t, []byte(v))})
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Name != "pin" || refused.Hint() == "" {
			t.Errorf("%q: %v", v, err)
		}
	}
	if _, err := NewNeedles(); err == nil {
		t.Error("a search for nothing is not refused")
	}
}

func TestRedact(t *testing.T) {
	v := []byte("correct horse battery staple")
	n := needles(t, v)
	for text, want := range map[string]string{
		"/tmp/a file":                       "/tmp/a file",
		"/tmp/correct horse battery staple": "/tmp/<token>",
		"a correct horse battery staple, " + hex.EncodeToString(v) + " z": "a <token>, <token> z",
	} {
		if got := n.redact(text); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	text := make([]byte, 16<<20)
	for i := range text {
		text[i] = byte(rand.Uint32())
	}
	for _, size := range []int{8, 44} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var list []Needle
			for i := range 3 {
				v := make([]byte, size)
				for j := range v {
					v[j] = byte(rand.Uint32())
				}
				list = append(list, Needle{Name: fmt.Sprint(i), Value: value(b, v)})
			}
			n, err := NewNeedles(list...)
			if err != nil {
				b.Fatal(err)
			}
			defer n.Close()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				_ = n.all(text, func(*form, int64, int64) {})
			}
		})
	}
}
