// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// TestDelivery: both channels, bit-exact, in a VM that powers off by itself.
func TestDelivery(t *testing.T) {
	d, info, sp := installed(t)
	secrets := map[string]string{
		"A":             "",
		"COMMA,=NAME":   "a,b=c,,d\n\x00\xff",
		"HOST_API_KEY":  strings.Repeat("k", 44),
		"BIG":           strings.Repeat("0123456789abcdef", 8<<10), // goes by fw_cfg
		"BIG,COMMA=YES": strings.Repeat("x", 70<<10),
	}
	l, out := launchOf(t, d, info, sp, values(t, secrets))
	before := descriptorsOpen(t)
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	exit, kinds := end(t, m)
	if !exit.Clean || exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	if len(kinds) != 3 {
		t.Errorf("events %v", kinds)
	}
	if after := descriptorsOpen(t); len(after) > len(before) {
		t.Errorf("descriptors left: %v, before %v", after, before)
	}
	r, err := probe.Parse(strings.NewReader(out.console.String()))
	if err != nil {
		t.Fatalf("%v\n%s", err, out.console.String())
	}
	got := map[string]probe.Digest{}
	for _, s := range r.OEM() {
		for _, str := range s.Strings {
			got[fmt.Sprintf("%x", str.SHA256)] = str.SHA256
		}
	}
	for _, f := range r.FwCfg {
		got[f.Name] = f.SHA256
	}
	for name, v := range secrets {
		oem := sha256.Sum256([]byte("io.systemd.credential.binary:" + name + "=" + base64.StdEncoding.EncodeToString([]byte(v))))
		_, bySMBIOS := got[fmt.Sprintf("%x", oem)]
		sum, byFwCfg := got["opt/io.systemd.credentials/"+name]
		if bySMBIOS == byFwCfg || byFwCfg && sum != sha256.Sum256([]byte(v)) {
			t.Errorf("%s: in SMBIOS %v, in fw_cfg %v, or not as it is", name, bySMBIOS, byFwCfg)
		}
	}
	if out.log.String() != "" {
		t.Errorf("QEMU said %q", out.log.String())
	}
}
