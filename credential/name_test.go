// SPDX-License-Identifier: Apache-2.0

package credential_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/testguest"
)

func TestCheckName(t *testing.T) {
	good := []string{
		"a", "HOST_API_KEY", "host-api-key", ".hidden", "...", "a=b", "a,b", "a b", " ", "~", "%",
		"vmm.notify_socket", strings.Repeat("x", 255),
	}
	for _, n := range good {
		if err := credential.CheckName(n); err != nil {
			t.Errorf("%q: %v", n, err)
		}
	}
	bad := map[string]string{
		"": "is empty", ".": "directory", "..": "directory", "a/b": `holds a '/'`, "/": `holds a '/'`,
		"a:b": `holds a ':'`, "a\nb": "control", "\x00": "control", "a\x7f": "control",
		"ä": "not ASCII", "\x80": "not ASCII", "\xff": "not ASCII", strings.Repeat("x", 256): "256 characters and 255",
	}
	for n, want := range bad {
		err := credential.CheckName(n)
		var ne *credential.NameError
		if !errors.As(err, &ne) || !strings.Contains(err.Error(), want) || ne.Hint() == "" {
			t.Errorf("%q: %v, want %q", n, err, want)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x00\x7f") {
			t.Errorf("%q is not quoted: %v", n, err)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", ".", "..", "a/b", "a:b", "HOST_API_KEY", "\x1f", "\x7f", "ü", strings.Repeat("x", 256)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := credential.CheckName(s) == nil, testguest.ValidName(s); got != want {
			t.Errorf("%q: valid %v, systemd says %v", s, got, want)
		}
	})
}

func TestGuestName(t *testing.T) {
	for host, want := range map[string]string{
		"host-api-key":     "HOST_API_KEY",
		"host-db-password": "HOST_DB_PASSWORD",
		"HOST_JWT":         "HOST_JWT",
		"host.tls-key":     "HOST.TLS_KEY",
		"a1":               "A1",
	} {
		if got := credential.GuestName(host); got != want {
			t.Errorf("%s becomes %s, want %s", host, got, want)
		}
	}
}

// A name that is valid on the host stays valid and as long in the guest, and is
// the same when it is mapped again.
func TestGuestNameKeepsNamesValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := name().Draw(t, "host")
		guest := credential.GuestName(host)
		if err := credential.CheckName(guest); err != nil {
			t.Fatal(err)
		}
		if len(guest) != len(host) || credential.GuestName(guest) != guest {
			t.Fatalf("%q becomes %q", host, guest)
		}
	})
}

// name draws any name systemd takes.
func name() *rapid.Generator[string] {
	var alphabet []rune
	for c := ' '; c < 127; c++ {
		if c != '/' && c != ':' {
			alphabet = append(alphabet, c)
		}
	}
	return rapid.StringOfN(rapid.SampledFrom(alphabet), 1, 255, -1).Filter(testguest.ValidName)
}

func TestFwCfgName(t *testing.T) {
	longest := strings.Repeat("x", 28)
	key, err := credential.FwCfgName(longest)
	if err != nil || key != "opt/io.systemd.credentials/"+longest || len(key) != 55 {
		t.Errorf("28 characters: %q, %v", key, err)
	}
	for n, want := range map[string]string{
		longest + "x": "29 characters and a fw_cfg key has room for 28",
		".a":          `begins with "."`,
		"a/b":         "holds a '/'",
		"":            "is empty",
	} {
		if _, err := credential.FwCfgName(n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", n, err, want)
		}
	}
}

// A value under any name that FwCfgName takes reaches the guest.
func TestFwCfgNameReachesTheGuest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := name().Draw(t, "name")
		key, err := credential.FwCfgName(n)
		if err != nil {
			return
		}
		got := testguest.Guest{Systemd: 252}.Boot(nil, map[string][]byte{key: []byte("v")})
		if string(got.Credentials[n]) != "v" || len(got.Complaints) > 0 {
			t.Fatalf("%q: %v", n, got.Complaints)
		}
	})
}
