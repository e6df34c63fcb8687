// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// arrived is the report of a guest that got these strings, one slice for each
// structure, and these files.
func arrived(structs [][]string, files map[string]string) *probe.Report {
	r := &probe.Report{Platform: "q35", HasFwCfg: true, SMBIOS: &probe.SMBIOS{Anchor: "_SM_"}}
	for i, list := range structs {
		s := probe.Structure{Type: 11, Handle: uint16(0xb00 + i), Bytes: 6, Count: uint8(len(list)), Found: uint32(len(list))}
		for j, v := range list {
			s.Bytes += uint32(len(v)) + 1
			s.Strings = append(s.Strings, probe.String{Index: uint32(j + 1), Bytes: uint32(len(v)), SHA256: digest(v)})
		}
		r.SMBIOS.Structures = append(r.SMBIOS.Structures, s)
	}
	for name, v := range files {
		r.FwCfg = append(r.FwCfg, probe.File{Name: name, Bytes: uint32(len(v)), Digested: true, SHA256: sha256.Sum256([]byte(v))})
	}
	return r
}

var (
	keyItem    = item{kind: credential.Secret, host: "host-key", guest: "KEY", value: "a\x00secret"}
	staticItem = item{kind: credential.Static, guest: "ENV", value: "test"}
	rawItem    = item{kind: credential.OEMString, value: "raw"}
	rawItem2   = item{kind: credential.OEMString, value: "raw2"}
	readyItem  = item{kind: credential.Static, guest: readyAddress, value: "vsock:2:1"}
	keyString  = "io.systemd.credential.binary:KEY=" + base64.StdEncoding.EncodeToString([]byte("a\x00secret"))
	readyText  = "io.systemd.credential:vmm.notify_socket=vsock:2:1"
)

func TestCompareTakesWhatIsRight(t *testing.T) {
	items := []item{keyItem, staticItem, rawItem, rawItem2, readyItem}
	cases := map[string]*probe.Report{
		"strings": arrived([][]string{{"raw", keyString}, {"raw2", "io.systemd.credential:ENV=test", readyText}}, nil),
		"a file": arrived([][]string{{"raw", "raw2", "io.systemd.credential.binary:ENV=dGVzdA==", readyText}},
			map[string]string{"opt/io.systemd.credentials/KEY": "a\x00secret"}),
	}
	for name, r := range cases {
		if faults := compare(items, 252, nil, r); len(faults) > 0 {
			t.Errorf("%s: %q", name, faults)
		}
	}
}

// Each way in which a VMM is known to fail is seen.
func TestCompareSees(t *testing.T) {
	items := []item{keyItem, staticItem, rawItem, rawItem2, readyItem}
	right := []string{"raw", "raw2", keyString, "io.systemd.credential:ENV=test", readyText}
	change := func(f func(l []string) []string) *probe.Report {
		return arrived([][]string{f(slices.Clone(right))}, nil)
	}
	set := func(i int, v string) func([]string) []string {
		return func(l []string) []string { l[i] = v; return l }
	}
	without := func(i int) func([]string) []string {
		return func(l []string) []string { return slices.Delete(l, i, i+1) }
	}
	adjust := func(f func(s *probe.Structure)) *probe.Report {
		r := change(func(l []string) []string { return l })
		f(&r.SMBIOS.Structures[0])
		return r
	}
	file := func(name, v string) *probe.Report {
		return arrived([][]string{slices.Delete(slices.Clone(right), 2, 3)}, map[string]string{name: v})
	}
	cases := map[string]struct {
		r    *probe.Report
		says string
	}{
		"nothing":              {arrived(nil, nil), "not in the guest"},
		"no table":             {&probe.Report{}, "not in the guest"},
		"a lost string":        {change(without(2)), "not in the guest"},
		"a cut string":         {change(set(2, keyString[:len(keyString)-1])), "not in the guest"},
		"a lost raw string":    {change(without(0)), "not in the guest"},
		"two of one":           {change(func(l []string) []string { return slices.Insert(l, 0, keyString) }), "too many"},
		"a secret as text":     {change(set(2, "io.systemd.credential:KEY=a")), "not in the guest"},
		"a stranger":           {change(func(l []string) []string { return slices.Insert(l, 0, "x") }), "too many"},
		"raw out of order":     {change(func(l []string) []string { l[0], l[1] = l[1], l[0]; return l }), "out of order"},
		"READY not the last":   {change(func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }), "not the last"},
		"a wrong count":        {adjust(func(s *probe.Structure) { s.Count = 0 }), "counts 0"},
		"padding":              {adjust(func(s *probe.Structure) { s.Bytes++ }), "strings make"},
		"a file by this name":  {file("opt/io.systemd.credentials/KEY", "other"), "not in the guest"},
		"a file by a like one": {file("opt/io.systemd.credentials/KEY2", "a\x00secret"), "too many"},
		"a file cut":           {file("opt/io.systemd.credentials/KEY", "a\x00secre"), "not in the guest"},
		"both channels": {arrived([][]string{right}, map[string]string{
			"opt/io.systemd.credentials/KEY": "a\x00secret",
		}), "too many"},
	}
	for name, c := range cases {
		faults := compare(items, 252, nil, c.r)
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.says) }) {
			t.Errorf("%s: faults %q, none with %q", name, faults, c.says)
		}
	}
}

func TestCompareKnowsTheGuestsPage(t *testing.T) {
	one := item{kind: credential.OEMString, value: strings.Repeat("x", 4096-7)}
	two := item{kind: credential.OEMString, value: strings.Repeat("x", 4096-6)}
	for _, c := range []struct {
		systemd int
		it      item
		faults  int
	}{{252, one, 0}, {252, two, 1}, {256, two, 1}, {257, two, 0}} {
		if f := compare([]item{c.it}, c.systemd, nil, arrived([][]string{{c.it.value}}, nil)); len(f) != c.faults {
			t.Errorf("systemd %d, %s: %q", c.systemd, c.it.label(), f)
		}
	}
	pair := arrived([][]string{{two.value, "raw"}}, nil)
	if f := compare([]item{two, rawItem}, 257, nil, pair); len(f) != 1 {
		t.Errorf("two strings in a long structure: %q", f)
	}
	if f := compare([]item{{kind: credential.Secret, guest: "A=B", value: "x"}}, 257, nil,
		arrived([][]string{{"io.systemd.credential.binary:A=B=eA=="}}, nil)); len(f) == 0 {
		t.Error("a name that ends at its own \"=\" was taken")
	}
}

// The generator makes what it is meant to, the same for the same seed.
func TestGeneratorCovers(t *testing.T) {
	seen := map[string]int{}
	note := func(what string, is bool) {
		if is {
			seen[what]++
		} else {
			seen[what] += 0
		}
	}
	for n := range uint64(1000) {
		items, systemd := newGenerator(1, n).set()
		again, _ := newGenerator(1, n).set()
		if !slices.Equal(items, again) {
			t.Fatalf("set %d is not the same twice", n)
		}
		note("an old guest", systemd == 252)
		note("a new guest", systemd == 257)
		note("256 items or more", len(items) >= 256)
		note("one item", len(items) == 1)
		for _, it := range items {
			for _, size := range []int{0, 1, 4095, 4096, 4097} {
				note(fmt.Sprintf("%d bytes", size), len(it.value) == size)
			}
			note("more than a table", len(it.value) > 65_535)
			note("a name of 255 bytes", len(it.guest) == 255)
			note("a name too long", len(it.guest) == 256)
			note("a name for fw_cfg", len(it.guest) == 28)
			note("a comma in a name", strings.Contains(it.guest, ","))
			note("= in a name", strings.Contains(it.guest, "="))
			note(it.kind.String(), true)
			for what, part := range map[string]string{
				"NUL": "\x00", "newline": "\n", "comma": ",", "quote": `"`, "UTF-8": "ß€", "control": "\x1b",
			} {
				note(what, strings.Contains(it.value, part))
			}
		}
	}
	for what, n := range seen {
		if n < 3 {
			t.Errorf("%s: only %d times in 1,000 sets", what, n)
		}
	}
}
