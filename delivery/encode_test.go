// SPDX-License-Identifier: Apache-2.0

package delivery_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
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

func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// boot hands a payload to the model of a guest.
func boot(t rapid.TB, systemd int, p *delivery.Payload) testguest.Booted {
	t.Helper()
	var structs [][]byte
	for _, r := range p.SMBIOS {
		structs = append(structs, plain(t, r))
	}
	items := map[string][]byte{}
	for _, b := range p.FwCfg {
		if _, twice := items[b.Name]; twice {
			t.Fatalf("fw_cfg key %s twice", b.Name)
		}
		items[b.Name] = plain(t, b.Rope)
	}
	return testguest.Guest{Systemd: systemd}.Boot(structs, items)
}

// two is a set of a secret and a static credential.
func two(t *testing.T, a *secret.Arena, key string, static string) *credential.Set {
	t.Helper()
	s := credential.NewSet()
	must(t, s.AddSecret("host-api-key", "HOST_API_KEY", value(t, a, []byte(key))))
	must(t, s.AddStatic("CLUSTER", static))
	return s
}

func TestEncode(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	s := two(t, a, "key\n", "example")
	must(t, s.AddOEMString("as it is"))
	p := planned(t, q35(), 252, s.Metas()...)
	payload, err := p.Encode(s)
	must(t, err)
	want := "\x0b\x05\x00\x0b\x03io.systemd.credential:CLUSTER=example\x00" +
		"io.systemd.credential.binary:HOST_API_KEY=a2V5Cg==\x00as it is\x00\x00"
	if got := string(plain(t, payload.SMBIOS[0])); len(payload.SMBIOS) != 1 || got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := string(plain(t, payload.Strings[1])); len(payload.Strings) != 3 || got != "io.systemd.credential.binary:HOST_API_KEY=a2V5Cg==" {
		t.Errorf("strings: %q", got)
	}
	p = planned(t, fwCfgOnly(), 252, two(t, a, "key\n", "").Metas()...)
	s2 := two(t, a, "key\n", "")
	payload2, err := p.Encode(s2)
	must(t, err)
	if len(payload2.FwCfg) != 2 || payload2.FwCfg[0].Name != "opt/io.systemd.credentials/CLUSTER" || payload2.FwCfg[0].Rope.Len() != 0 ||
		string(plain(t, payload2.FwCfg[1].Rope)) != "key\n" {
		t.Errorf("%+v", payload2.FwCfg)
	}

	must(t, payload.Close())
	must(t, payload.Close())
	for _, piece := range payload.SMBIOS[0] {
		if piece.Secret != nil && !errors.Is(piece.Secret.Use(func([]byte) error { return nil }), secret.ErrWiped) {
			t.Error("an encoding lives on after Close")
		}
	}
	if s.Items()[1].Value().Len() != 4 {
		t.Error("Close wiped the set's own value")
	}
}

func TestEncodeOfAnotherSet(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	for name, offers := range map[string][]delivery.Offer{"smbios": smbiosOnly(), "fw_cfg": fwCfgOnly()} {
		t.Run(name, func(t *testing.T) {
			p := planned(t, offers, 257, two(t, a, "123", "abc").Metas()...)
			if _, err := p.Encode(two(t, a, "321", "cba")); err != nil {
				t.Errorf("the same names and lengths: %v", err)
			}
			more := two(t, a, "123", "abc")
			must(t, more.AddStatic("MORE", "x"))
			renamed := credential.NewSet()
			must(t, renamed.AddSecret("host-api-key", "OTHER_KEY", value(t, a, []byte("123"))))
			must(t, renamed.AddStatic("CLUSTER", "abc"))
			wiped := two(t, a, "123", "abc")
			must(t, wiped.Close())
			for what, s := range map[string]*credential.Set{
				"longer": two(t, a, "1234", "abc"), "shorter": two(t, a, "12", "abc"), "empty": two(t, a, "", "abc"),
				"static": two(t, a, "123", "abcd"), "not text": two(t, a, "123", "a\x00b"),
				"more": more, "fewer": credential.NewSet(), "renamed": renamed, "wiped": wiped,
			} {
				payload, err := p.Encode(s)
				if !errors.Is(err, delivery.ErrMismatch) || payload != nil {
					t.Errorf("%s: %v", what, err)
				}
				if err != nil && strings.Contains(err.Error(), "123") {
					t.Errorf("%s: the error shows a value: %v", what, err)
				}
			}
		})
	}
	if _, err := (delivery.Plan{}).Encode(two(t, a, "1", "2")); !errors.Is(err, delivery.ErrMismatch) {
		t.Errorf("a plan that was refused: %v", err)
	}
}

// An empty value that was wiped has the right length and must not pass.
func TestEncodeOfAWipedEmptyValue(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	for _, offers := range [][]delivery.Offer{smbiosOnly(), fwCfgOnly()} {
		s := two(t, a, "", "x")
		p := planned(t, offers, 257, s.Metas()...)
		if payload, err := p.Encode(s); err != nil || len(boot(t, 257, payload).Credentials) != 2 {
			t.Fatalf("an empty value: %v", err)
		}
		must(t, s.Close())
		if _, err := p.Encode(s); !errors.Is(err, secret.ErrWiped) {
			t.Errorf("%s: %v", offers[0].Channel, err)
		}
	}
}

func TestNotifySocketIsTheLastString(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	s := two(t, a, "key", "example")
	must(t, s.AddStatic(credential.NotifySocket, "vsock-stream:2:1234"))
	must(t, s.AddStatic("zzz", strings.Repeat("z", 4000)))
	must(t, s.AddOEMString("an OEM string"))
	payload, err := planned(t, smbiosOnly(), 252, s.Metas()...).Encode(s)
	must(t, err)
	got := boot(t, 252, payload)
	if last := got.Strings[len(got.Strings)-1]; !strings.HasPrefix(last, "io.systemd.credential:vmm.notify_socket=") || len(payload.SMBIOS) != 2 {
		t.Errorf("the last of %d structures ends with %.60q", len(payload.SMBIOS), last)
	}
}

// 256 values of one byte: what fits the guest's directory, and as many
// structures as they take, each with a handle of its own.
func TestFullGuest(t *testing.T) {
	a := secret.NewArena()
	defer a.Close()
	s := credential.NewSet()
	for i := range credential.MaxCount {
		must(t, s.AddSecret(fmt.Sprint("host-", i), fmt.Sprint("N", i), value(t, a, []byte{byte(i)})))
	}
	for _, offers := range [][]delivery.Offer{smbiosOnly(), append(fwCfgOnly(), delivery.Offer{Channel: delivery.SMBIOS, TotalMax: 5000})} {
		payload, err := planned(t, offers, 252, s.Metas()...).Encode(s)
		must(t, err)
		got := boot(t, 252, payload)
		if len(got.Complaints) > 0 || len(got.Credentials) != 256 || !bytes.Equal(got.Credentials["N200"], []byte{200}) {
			t.Errorf("%d credentials, %q", len(got.Credentials), got.Complaints)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, n := range []int{3, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := secret.NewArena()
			defer a.Close()
			s := credential.NewSet()
			for i := range n {
				v, err := a.Make(44, func(dst []byte) (int, error) { return len(dst), nil })
				if err != nil {
					b.Fatal(err)
				}
				if err := s.AddSecret(fmt.Sprint("host-key-", i), fmt.Sprint("HOST_KEY_", i), v); err != nil {
					b.Fatal(err)
				}
			}
			metas, offers := s.Metas(), q35()
			b.ReportAllocs()
			for b.Loop() {
				p, refusals := delivery.Make(offers, delivery.Guest{Systemd: 252}, metas)
				if len(refusals) > 0 {
					b.Fatal(refusals)
				}
				payload, err := p.Encode(s)
				if err != nil {
					b.Fatal(err)
				}
				if err := payload.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
