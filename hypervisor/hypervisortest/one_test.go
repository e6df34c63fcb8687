// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// oneStructure is what a driver offers that has SMBIOS only, in one structure.
func oneStructure() []delivery.Offer {
	return []delivery.Offer{{
		Channel: delivery.SMBIOS, Items: 255, NameMax: 255, TotalMax: 50_000, Structs: 1, Empty: true, Raw: true, JSON: true,
	}}
}

func TestJudgeOneStructure(t *testing.T) {
	of := func(v ...string) []item {
		var out []item
		for _, s := range v {
			out = append(out, item{kind: credential.OEMString, value: s})
		}
		return out
	}
	values := func(n int) []item { return raw("o", 1)(n - 1) }
	cases := map[string]struct {
		items   []item
		systemd int
		want    verdict
	}{
		"nothing":                 {nil, 252, mustTake},
		"one":                     {[]item{filled("A", 44)}, 252, mustTake},
		"empty":                   {[]item{filled("A", 0)}, 252, mustTake},
		"255 strings":             {values(255), 252, mustTake},
		"256 strings":             {values(256), 257, mustLeave},
		"= in a name":             {[]item{filled("A=B", 4)}, 257, mustLeave},
		"a page":                  {of(strings.Repeat("o", 4089)), 252, mustTake},
		"a page and a byte":       {of(strings.Repeat("o", 4090)), 252, mustLeave},
		"a page in two":           {of(strings.Repeat("o", 4000), strings.Repeat("o", 88)), 252, mustTake},
		"a byte too much in two":  {of(strings.Repeat("o", 4000), strings.Repeat("o", 89)), 252, mustLeave},
		"that for a new guest":    {of(strings.Repeat("o", 4000), strings.Repeat("o", 89)), 257, mustTake},
		"as text it fits":         {[]item{{kind: credential.Static, guest: "A", value: strings.Repeat("v", 3900)}}, 252, either},
		"more than half the body": {of(strings.Repeat("o", 30_000)), 257, either},
		"more than the body":      {of(strings.Repeat("o", 50_001)), 257, mustLeave},
		"quotes for the body":     {of(strings.Repeat(`"`, 25_001)), 257, mustLeave},
		"controls for the body":   {of(strings.Repeat("\x01", 9_000)), 257, mustLeave},
		"lines, escaped anyhow":   {of(strings.Repeat("\n", 9_000)), 257, either},
		"no UTF-8":                {of("\xff"), 257, mustLeave},
		"a secret is no UTF-8":    {[]item{{kind: credential.Secret, host: "h", guest: "A", value: "\xff\x00"}}, 252, mustTake},
	}
	for name, c := range cases {
		if got, why := judge(c.items, c.systemd, oneStructure()); got != c.want {
			t.Errorf("%s: %d (%s), want %d", name, got, why, c.want)
		}
	}
	for name, change := range map[string]func(o *delivery.Offer){
		"no raw strings":  func(o *delivery.Offer) { o.Raw = false },
		"fewer strings":   func(o *delivery.Offer) { o.Items = 1 },
		"shorter strings": func(o *delivery.Offer) { o.ItemMax = 2 },
		"a short one":     func(o *delivery.Offer) { o.StructMax = 10 },
	} {
		offers := oneStructure()
		change(&offers[0])
		if got, why := judge(of("one", "two"), 257, offers); got != either {
			t.Errorf("%s: %d (%s), want either", name, got, why)
		}
	}
}

// What the model and the code under test say of random sets agrees.
func TestJudgeOneStructureAgrees(t *testing.T) {
	decided := map[verdict]int{}
	for n := range uint64(400) {
		g := newGenerator(7, n)
		g.small = n%2 == 0
		items, systemd := g.set()
		v, why := judge(items, systemd, oneStructure())
		decided[v]++
		refusal := refusalOf(items, systemd, oneStructure())
		if v == mustTake && refusal != "" || v == mustLeave && refusal == "" {
			t.Errorf("set %d of %d items: verdict %d (%s), refusal %q", n, len(items), v, why, refusal)
		}
	}
	t.Logf("%v", decided)
	if decided[mustTake] < 60 || decided[mustLeave] < 60 || decided[either] > 140 {
		t.Errorf("verdicts %v: too few are sure", decided)
	}
}

// The families' limits, without a VM: the number of strings is exact.
func TestEdgesOfOneStructure(t *testing.T) {
	offers := oneStructure()
	table, files := channels(offers)
	ran := 0
	for _, e := range edges() {
		if e.where == nil || e.where(table, files) {
			t.Run(e.name, func(t *testing.T) { e.check(t, offers) })
			ran++
		}
	}
	if ran == 0 || ran == len(edges()) {
		t.Errorf("%d of %d families make sense", ran, len(edges()))
	}
}

func TestEscapedLenHoldsWhatJSONTakes(t *testing.T) {
	for _, s := range []string{"", "plain", `a"b\c`, "\n\t\r\x01\x1f", "ß€𝄞", "\x7f"} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if short, long := escapedLen(s); short > len(b) || long < len(b) {
			t.Errorf("%q takes %d bytes, not from %d to %d", s, len(b), short, long)
		}
	}
}

// One structure may be long for a new guest, and there is only one.
func TestCompareKnowsOneStructure(t *testing.T) {
	big := item{kind: credential.OEMString, value: strings.Repeat("x", 4080)}
	other := item{kind: credential.OEMString, value: strings.Repeat("y", 100)}
	items := []item{big, other}
	together := arrived([][]string{{big.value, other.value}}, nil)
	apart := arrived([][]string{{big.value}, {other.value}}, nil)
	for _, c := range []struct {
		systemd int
		offers  []delivery.Offer
		r       *probe.Report
		says    string
	}{
		{257, oneStructure(), together, ""},
		{256, oneStructure(), together, "reads 4096"},
		{257, nil, together, "2 strings"},
		{257, oneStructure(), apart, "2 structures"},
		{252, nil, apart, ""},
	} {
		faults := compare(items, c.systemd, c.offers, c.r)
		seen := slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, c.says) })
		if c.says == "" && len(faults) > 0 || c.says != "" && !seen {
			t.Errorf("systemd %d: faults %q, want one with %q", c.systemd, faults, c.says)
		}
	}
}

// Small sets are small, and of every kind all the same.
func TestSmallSetsCover(t *testing.T) {
	seen, taken, bytes := map[string]int{}, 0, 0
	for n := range uint64(1000) {
		g := newGenerator(1, n)
		g.small = true
		items, systemd := g.set()
		if refusalOf(items, systemd, oneStructure()) != "" {
			continue
		}
		taken++
		if len(items) >= 200 {
			seen["200 items"]++
		}
		for _, it := range items {
			bytes += len(it.strings()[0])
			seen[it.kind.String()]++
			for what, is := range map[string]bool{
				"empty": it.value == "", "a byte": len(it.value) == 1, "a name of 255 bytes": len(it.guest) == 255,
				"a comma in a name": strings.Contains(it.guest, ","), "READY": it.guest == readyAddress,
			} {
				if is {
					seen[what]++
				}
			}
			for what, part := range map[string]string{
				"NUL": "\x00", "newline": "\n", "comma": ",", "quote": `"`, "UTF-8": "ß€", "control": "\x1b",
			} {
				if strings.Contains(it.value, part) {
					seen[what+" in "+it.kind.String()]++
				}
			}
		}
	}
	t.Logf("%d sets are taken, %d bytes each: %v", taken, bytes/max(taken, 1), seen)
	if taken < 500 || taken > 950 || bytes/taken > 1500 {
		t.Errorf("%d sets are taken, of %d bytes each", taken, bytes/taken)
	}
	for _, what := range []string{"200 items", "empty", "a byte", "a name of 255 bytes", "a comma in a name", "READY", "NUL in secret", "control in secret"} {
		if seen[what] < 3 {
			t.Errorf("%s: only %d times in 1,000 sets", what, seen[what])
		}
	}
}
