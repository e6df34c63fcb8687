// SPDX-License-Identifier: Apache-2.0

package credential_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"github.com/digitalocean/go-smbios/smbios"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/testguest"
	"github.com/vmcred/vmcred/secret"
)

// plain puts a rope together. Only tests may do that.
func plain(t rapid.TB, r secret.Rope) []byte {
	t.Helper()
	out := []byte{}
	for _, p := range r {
		out = append(out, p.Text...)
		if p.Secret == nil {
			continue
		}
		if err := p.Secret.Use(func(b []byte) error { out = append(out, b...); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func value(t rapid.TB, a *secret.Arena, b []byte) *secret.Value {
	t.Helper()
	v, err := a.Make(len(b), func(dst []byte) (int, error) { return copy(dst, b), nil })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// oracle decodes one structure with another project's decoder.
func oracle(t rapid.TB, raw []byte) *smbios.Structure {
	t.Helper()
	table := append(bytes.Clone(raw), 127, 4, 1, 0, 0, 0)
	ss, err := smbios.NewDecoder(bytes.NewReader(table)).Decode()
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if len(ss) != 2 || ss[1].Header.Type != 127 {
		t.Fatalf("%d structures, want ours and the end of the table", len(ss))
	}
	return ss[0]
}

// What Type11 takes is what both decoders read back.
func TestType11IsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		strs := rapid.SliceOfN(rapid.StringN(0, 40, -1), 0, 260).Draw(t, "strings")
		checkType11(t, rapid.Uint16().Draw(t, "handle"), strs)
	})
}

func checkType11(t rapid.TB, handle uint16, strs []string) {
	t.Helper()
	a := secret.NewArena()
	defer a.Close()
	ropes, lens := make([]secret.Rope, len(strs)), make([]int, len(strs))
	bad := len(strs) == 0 || len(strs) > 255
	for i, s := range strs {
		cut := len(s) / 2
		ropes[i] = secret.Rope{{Text: s[:cut]}, {Secret: value(t, a, []byte(s[cut:]))}}
		lens[i] = len(s)
		bad = bad || s == "" || strings.Contains(s, "\x00")
	}
	r, err := credential.Type11(handle, ropes)
	if (err != nil) != bad {
		t.Fatalf("refused: %v, want refused: %v", err, bad)
	}
	if err != nil {
		return
	}
	raw := plain(t, r)
	if len(raw) != credential.Type11Len(lens) {
		t.Fatalf("%d bytes, Type11Len says %d", len(raw), credential.Type11Len(lens))
	}
	s := oracle(t, raw)
	if s.Header.Type != 11 || s.Header.Length != 5 || s.Header.Handle != handle || !bytes.Equal(s.Formatted, []byte{byte(len(strs))}) {
		t.Fatalf("header %+v %v", s.Header, s.Formatted)
	}
	if d := cmp.Diff(strs, s.Strings); d != "" {
		t.Fatal(d)
	}
	if d := cmp.Diff(strs, (testguest.Guest{Systemd: 257}).Boot([][]byte{raw}, nil).Strings); d != "" {
		t.Fatal(d)
	}
}

func FuzzType11(f *testing.F) {
	f.Add(uint16(0x0b00), "a\nbc\n")
	f.Add(uint16(0), "")
	f.Add(uint16(0xffff), "\x00")
	f.Add(uint16(1), strings.Repeat("a\n", 256))
	f.Add(uint16(1), strings.Repeat("a\n", 254)+"a")
	f.Fuzz(func(t *testing.T, handle uint16, lines string) {
		if strings.Count(lines, "\n") > 300 || len(lines) > 1<<16 {
			return
		}
		checkType11(t, handle, strings.Split(lines, "\n"))
	})
}

func TestType11Refuses(t *testing.T) {
	text := func(s string) secret.Rope { return secret.Rope{{Text: s}} }
	a := secret.NewArena()
	defer a.Close()
	hidden := secret.Rope{{Text: "x="}, {Secret: value(t, a, []byte("a\x00b"))}}
	wiped := value(t, a, []byte("abc"))
	wiped.Wipe()
	for name, c := range map[string]struct {
		strs []secret.Rope
		want string
	}{
		"none":         {nil, "1 to 255 strings, not 0"},
		"256":          {slices256(text("x"), 256), "1 to 255 strings, not 256"},
		"empty":        {[]secret.Rope{text("a"), nil}, "string 2: an SMBIOS string cannot be empty"},
		"NUL":          {[]secret.Rope{text("a\x00b")}, "string 1: an SMBIOS string cannot hold a NUL"},
		"NUL in value": {[]secret.Rope{hidden}, "cannot hold a NUL"},
		"wiped":        {[]secret.Rope{{{Text: "x="}, {Secret: wiped}}}, "wiped"},
	} {
		if _, err := credential.Type11(1, c.strs); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := credential.Type11(1, slices256(text("x"), 255)); err != nil {
		t.Errorf("255 strings: %v", err)
	}
}

func slices256(r secret.Rope, n int) []secret.Rope {
	out := make([]secret.Rope, n)
	for i := range out {
		out[i] = r
	}
	return out
}

// A value in a binary string is the same bytes in the guest, whatever it holds.
func TestBinaryStringIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkBinary(t, name().Draw(t, "name"), rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "value"))
	})
}

func FuzzBinaryString(f *testing.F) {
	f.Add("HOST_API_KEY", []byte("x"))
	f.Add("A", []byte{})
	f.Add(" ", []byte("\x00\n=\xff"))
	f.Fuzz(func(t *testing.T, n string, v []byte) { checkBinary(t, n, v) })
}

func checkBinary(t rapid.TB, n string, v []byte) {
	t.Helper()
	if credential.CheckSMBIOSName(n) != nil {
		return
	}
	a := secret.NewArena()
	defer a.Close()
	encoded, err := a.Base64(value(t, a, v))
	if err != nil {
		t.Fatal(err)
	}
	s := credential.BinaryString(n, encoded)
	if s.Len() != credential.BinaryStringLen(n, len(v)) {
		t.Fatalf("%d bytes, BinaryStringLen says %d", s.Len(), credential.BinaryStringLen(n, len(v)))
	}
	raw, err := credential.Type11(1, []secret.Rope{s})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{n: v}
	if n == "" || len(v) > 1<<20 {
		want = nil
	}
	got := testguest.Guest{Systemd: 257}.Boot([][]byte{plain(t, raw)}, nil)
	if d := cmp.Diff(want, got.Credentials, cmp.Comparer(bytes.Equal)); d != "" || len(got.Complaints) > 0 {
		t.Fatal(d, got.Complaints)
	}
}

func TestTextStringIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := name().Filter(func(s string) bool { return credential.CheckSMBIOSName(s) == nil }).Draw(t, "name")
		v := rapid.String().Filter(func(s string) bool { return !strings.Contains(s, "\x00") }).Draw(t, "value")
		s := credential.TextString(n, v)
		if len(s) != credential.TextStringLen(n, len(v)) {
			t.Fatalf("%d bytes, TextStringLen says %d", len(s), credential.TextStringLen(n, len(v)))
		}
		raw, err := credential.Type11(1, []secret.Rope{{{Text: s}}})
		if err != nil {
			t.Fatal(err)
		}
		got := testguest.Guest{Systemd: 257}.Boot([][]byte{plain(t, raw)}, nil)
		if g, ok := got.Credentials[n]; !ok || string(g) != v || len(got.Complaints) > 0 {
			t.Fatalf("%q became %q %v", v, g, got.Complaints)
		}
	})
}

func TestCheckSMBIOSName(t *testing.T) {
	if err := credential.CheckSMBIOSName("A.b-c_"); err != nil {
		t.Error(err)
	}
	for _, n := range []string{"a=b", "=", "", "a/b"} {
		if credential.CheckSMBIOSName(n) == nil {
			t.Errorf("%q was taken", n)
		}
	}
}

// Type11Len of one string at the page's edge, in numbers that were counted by
// hand: 5 + string + NUL + NUL.
func TestType11LenCounts(t *testing.T) {
	if got := credential.Type11Len([]int{4089}); got != 4096 {
		t.Errorf("4089 characters make %d bytes, want 4096", got)
	}
	if got := credential.Type11Len([]int{1, 2, 3}); got != 5+2+3+4+1 {
		t.Errorf("three strings make %d bytes", got)
	}
	if got := credential.BinaryStringLen("AB", 4); got != len("io.systemd.credential.binary:AB=")+base64.StdEncoding.EncodedLen(4) {
		t.Errorf("BinaryStringLen: %d", got)
	}
}
