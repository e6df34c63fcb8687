// SPDX-License-Identifier: Apache-2.0

package testguest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/testguest"
)

func raw(handle byte, strs ...string) []byte {
	b := []byte{11, 5, handle, 0x0b, byte(len(strs))}
	for _, s := range strs {
		b = append(append(b, s...), 0)
	}
	return append(b, 0)
}

// What the model must see: a guest that loses a credential says so here.
func TestModelSeesWhatIsLost(t *testing.T) {
	long := "io.systemd.credential:A=" + strings.Repeat("x", 5000)
	cases := []struct {
		name    string
		systemd int
		structs [][]byte
		fwCfg   map[string][]byte
		want    map[string]string
		clean   bool
	}{
		{"text", 252, [][]byte{raw(0, "io.systemd.credential:A=b=c")}, nil, map[string]string{"A": "b=c"}, true},
		{"binary", 252, [][]byte{raw(0, "io.systemd.credential.binary:A=AAE=")}, nil, map[string]string{"A": "\x00\x01"}, true},
		{"empty binary", 252, [][]byte{raw(0, "io.systemd.credential.binary:A=")}, nil, map[string]string{"A": ""}, true},
		{"bad base64", 252, [][]byte{raw(0, "io.systemd.credential.binary:A=AAE")}, nil, map[string]string{}, false},
		{"bits left over", 252, [][]byte{raw(0, "io.systemd.credential.binary:A=AAF=")}, nil, map[string]string{}, false},
		{"white space", 252, [][]byte{raw(0, "io.systemd.credential.binary:A=\nAA E=\t")}, nil, map[string]string{"A": "\x00\x01"}, true},
		{"cut", 256, [][]byte{raw(0, long)}, nil, map[string]string{"A": strings.Repeat("x", 4096-5-24)}, false},
		{"whole", 257, [][]byte{raw(0, long)}, nil, map[string]string{"A": strings.Repeat("x", 5000)}, true},
		{"empty string ends", 252, [][]byte{raw(0, "x", "", "io.systemd.credential:A=b")}, nil, map[string]string{}, false},
		{"first wins", 252, [][]byte{raw(0, "io.systemd.credential:A=b")}, map[string][]byte{"opt/io.systemd.credentials/A": []byte("c")}, map[string]string{"A": "c"}, false},
		{"dot in fw_cfg", 252, nil, map[string][]byte{"opt/io.systemd.credentials/.A": []byte("c")}, map[string]string{}, false},
		{"handle twice", 252, [][]byte{raw(0, "io.systemd.credential:A=b"), raw(0, "io.systemd.credential:B=b")}, nil, map[string]string{"A": "b", "B": "b"}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := testguest.Guest{Systemd: c.systemd}.Boot(c.structs, c.fwCfg)
			if len(got.Credentials) != len(c.want) {
				t.Errorf("has %d credentials, want %d", len(got.Credentials), len(c.want))
			}
			for name, v := range c.want {
				if !bytes.Equal(got.Credentials[name], []byte(v)) {
					t.Errorf("%s: %d bytes, want %d", name, len(got.Credentials[name]), len(v))
				}
			}
			if clean := len(got.Complaints) == 0; clean != c.clean {
				t.Errorf("complaints: %q", got.Complaints)
			}
		})
	}
}
