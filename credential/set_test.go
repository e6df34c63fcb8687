// SPDX-License-Identifier: Apache-2.0

package credential_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/testguest"
	"github.com/vmcred/vmcred/secret"
)

func TestSetIsSorted(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	s := credential.NewSet()
	must(t, s.AddOEMString("second in the alphabet"))
	must(t, s.AddSecret("host-z", "Z", value(t, a, []byte("zz\n"))))
	must(t, s.AddOEMString("first in the alphabet\n"))
	must(t, s.AddStatic("CLUSTER", "example"))
	must(t, s.AddStatic("EMPTY", ""))
	must(t, s.AddStatic("NUL", "a\x00b\n"))
	must(t, s.AddStatic("LATIN1", "\xe4"))
	must(t, s.AddSecret("host-a", "A", value(t, a, nil)))
	want := []credential.Meta{
		{Host: "host-a", Guest: "A"},
		{Guest: "CLUSTER", Kind: credential.Static, Len: 7, Text: true, Escaped: 7},
		{Guest: "EMPTY", Kind: credential.Static},
		{Guest: "LATIN1", Kind: credential.Static, Len: 1, Escaped: -1},
		{Guest: "NUL", Kind: credential.Static, Len: 4, Escaped: 14, TrailingNewline: true},
		{Host: "host-z", Guest: "Z", Len: 3, TrailingNewline: true},
		{Kind: credential.OEMString, Len: 22, Text: true, Escaped: 22},
		{Kind: credential.OEMString, Len: 22, Text: true, Escaped: 27, TrailingNewline: true},
	}
	if d := cmp.Diff(want, s.Metas()); d != "" {
		t.Error(d)
	}
	items := s.Items()
	if !slices.IsSortedFunc(items, func(a, b credential.Item) int { return credential.Compare(a.Meta, b.Meta) }) || len(items) != s.Len() {
		t.Error("items are not in order")
	}
	if got := string(plain(t, items[5].Rope())); got != "zz\n" {
		t.Errorf("Z is %q", got)
	}
	if items[6].Static() != "second in the alphabet" {
		t.Error("OEM strings changed their order")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSetRefusesClashes(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	v := func() *secret.Value { return value(t, a, []byte("v")) }
	add := map[string]func(s *credential.Set) error{
		"host-api-key": func(s *credential.Set) error { return s.AddSecret("host-api-key", "HOST_API_KEY", v()) },
		"host_api_key": func(s *credential.Set) error { return s.AddSecret("host_api_key", "HOST_API_KEY", v()) },
		"static HOST_API_KEY": func(s *credential.Set) error {
			return s.AddStatic("HOST_API_KEY", "x")
		},
		"OEM string io.systemd.credential:HOST_API_KEY": func(s *credential.Set) error {
			return s.AddOEMString("io.systemd.credential.binary:HOST_API_KEY=eA==")
		},
	}
	for first, addFirst := range add {
		for second, addSecond := range add {
			s := credential.NewSet()
			must(t, addFirst(s))
			err := addSecond(s)
			var clash *credential.ClashError
			if !errors.As(err, &clash) {
				t.Fatalf("%s, then %s: %v", first, second, err)
			}
			if want := first + " and " + second + " are both HOST_API_KEY in the guest"; err.Error() != want || clash.Hint() == "" {
				t.Errorf("got %q, want %q", err, want)
			}
			if s.Len() != 1 {
				t.Errorf("the set has %d items after a clash", s.Len())
			}
		}
	}
}

func TestSetRefusesNamesAndSizes(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	s := credential.NewSet()
	var ne *credential.NameError
	if err := s.AddSecret("a/b", "A", value(t, a, nil)); !errors.As(err, &ne) {
		t.Errorf("host name: %v", err)
	}
	if err := s.AddSecret("a", "A:B", value(t, a, nil)); !errors.As(err, &ne) {
		t.Errorf("guest name: %v", err)
	}
	if err := s.AddStatic("", "x"); !errors.As(err, &ne) {
		t.Errorf("static name: %v", err)
	}
	var large *secret.TooLargeError
	mib := make([]byte, credential.MaxValue+1)
	if err := s.AddSecret("a", "A", value(t, a, mib)); !errors.As(err, &large) {
		t.Errorf("1 MiB and 1 byte: %v", err)
	}
	if err := s.AddStatic("B", string(mib)); !errors.As(err, &large) {
		t.Errorf("static of 1 MiB and 1 byte: %v", err)
	}
	must(t, s.AddSecret("a", "A", value(t, a, mib[1:])))
	must(t, s.AddStatic("B", string(mib[1:])))
	wiped := value(t, a, []byte("x"))
	wiped.Wipe()
	if err := s.AddSecret("w", "W", wiped); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("wiped: %v", err)
	}
	if s.Len() != 2 {
		t.Errorf("%d items, want 2", s.Len())
	}
}

func TestSetRefusesOEMStringsThatAreLost(t *testing.T) {
	s := credential.NewSet()
	for in, want := range map[string]string{
		"":                            "empty",
		"a\x00b":                      "NUL",
		"io.systemd.credential:A":     `no "="`,
		"io.systemd.credential:a/b=c": "no credential name",
		"io.systemd.credential:=c":    "is empty",
		"io.systemd.credential.binary:A=not base64": "not base64",
	} {
		err := s.AddOEMString(in)
		var oe *credential.OEMStringError
		if !errors.As(err, &oe) || !strings.Contains(err.Error(), want) || oe.Hint() == "" {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
		if strings.Contains(in, "not base64") && strings.Contains(err.Error(), "A=") {
			t.Errorf("the error shows the string: %v", err)
		}
	}
	for _, in := range []string{"x", "io.systemd.stub.kernel-cmdline-extra=quiet", "io.systemd.credentials", "io.systemd.credential:A=b", "same", "same"} {
		must(t, s.AddOEMString(in))
	}
	if m := s.Metas()[3]; m.Guest != "A" || m.Kind != credential.OEMString {
		t.Errorf("%+v", m)
	}
}

// An OEM string is taken exactly if nothing of it is lost in the guest.
func FuzzOEMString(f *testing.F) {
	for _, s := range []string{
		"", "x", "a\x00b", "\x00\x000", "io.systemd.credential:A=b", "io.systemd.credential:A", "io.systemd.credential:a/b=c",
		"io.systemd.credential.binary:A=QQ==", "io.systemd.credential.binary:A=QR==", "io.systemd.credential.binary:A=Q Q\n==",
		"io.systemd.credential.binary:A=QQ", "io.systemd.credential.binary:=", "io.systemd.credential", "io.systemd.credential.binary:A=",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > credential.MaxValue {
			return
		}
		s := credential.NewSet()
		err := s.AddOEMString(in)
		raw := append(append([]byte{11, 5, 0, 0, 1}, in...), 0, 0)
		got := testguest.Guest{Systemd: 257}.Boot([][]byte{raw}, nil)
		whole := len(got.Complaints) == 0 && slices.Equal(got.Strings, []string{in})
		if whole != (err == nil) {
			t.Fatalf("%q: %v, the guest: %q %q", in, err, got.Strings, got.Complaints)
		}
		if err != nil {
			return
		}
		if _, is := got.Credentials[s.Metas()[0].Guest]; is != (s.Metas()[0].Guest != "") || len(got.Credentials) > 1 {
			t.Fatalf("%q is %q, the guest has %d", in, s.Metas()[0].Guest, len(got.Credentials))
		}
	})
}

func TestSetClosesItsValues(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	v := value(t, a, []byte("secret"))
	s := credential.NewSet()
	must(t, s.AddSecret("a", "A", v))
	must(t, s.AddStatic("B", "b"))
	must(t, s.Close())
	must(t, s.Close())
	if err := v.Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("after Close: %v", err)
	}
}

func TestKindAsText(t *testing.T) {
	for _, k := range []credential.Kind{credential.Secret, credential.Static, credential.OEMString} {
		b, err := json.Marshal(k)
		must(t, err)
		var back credential.Kind
		if err := json.Unmarshal(b, &back); err != nil || back != k {
			t.Errorf("%s: %v, %v", b, back, err)
		}
	}
	var k credential.Kind
	if json.Unmarshal([]byte(`"other"`), &k) == nil {
		t.Error("an unknown kind was taken")
	}
}
