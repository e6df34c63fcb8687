// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
)

// edge is a family of sets that grows with n, and has a largest that is taken.
type edge struct {
	name    string
	where   func(oem, files *delivery.Offer) bool // nil: everywhere
	systemd int
	// items returns the set of size n. All up to the edge are taken, all above refused.
	items func(n int) []item
	most  int // a size that is certainly refused
	exact int // the size that must be the largest, 0 if it is the driver's own
	// slack is by how much a refused size may be smaller than what would not fit into
	// one structure and one body: its commas.
	slack int
}

func filled(name string, n int) item {
	return item{kind: credential.Secret, host: "host", guest: name, value: strings.Repeat("v", n)}
}

// hasFiles leaves out what an SMBIOS table alone cannot carry.
func hasFiles(_, files *delivery.Offer) bool { return files != nil }

// hasOneStructure is for families that end with it: several have other limits.
func hasOneStructure(oem, files *delivery.Offer) bool {
	return oem != nil && oem.Structs == 1 && files == nil
}

// many returns n items of this size, for a family.
func many(size int, name func(int) string) func(int) []item {
	return func(n int) []item {
		var out []item
		for i := range n {
			it := filled(name(i), size)
			it.host = fmt.Sprintf("host-%d", i)
			out = append(out, it)
		}
		return out
	}
}

// raw returns n+1 times this text, in OEM strings of at most part times.
func raw(text string, part int) func(int) []item {
	return func(n int) []item {
		var out []item
		for n++; n > 0; n -= part {
			out = append(out, item{kind: credential.OEMString, value: strings.Repeat(text, min(n, part))})
		}
		return out
	}
}

// edges are those of SMBIOS, of fw_cfg, of names and of the guest. Names of 40
// bytes keep a value off fw_cfg.
func edges() []edge {
	long := strings.Repeat("n", 40)
	one := func(name string) func(int) []item {
		return func(n int) []item { return []item{filled(name, n)} }
	}
	named := func(size int) func(int) []item {
		return func(n int) []item { return one(strings.Repeat("n", n+1))(size) }
	}
	numbered := func(i int) string { return fmt.Sprintf("N%d", i) }
	longNumbered := func(i int) string { return fmt.Sprintf("N%03d%s", i, strings.Repeat("n", 251)) }
	static := func(text string) func(int) []item {
		return func(n int) []item {
			return []item{{kind: credential.Static, guest: "S", value: strings.Repeat(text, n)}}
		}
	}
	ready := func(n int) []item {
		return append(raw("o", 1<<20)(n), item{kind: credential.Static, guest: readyAddress, value: "vsock-stream:2:4294967295"})
	}
	lastOf255 := func(n int) []item { return append(many(1, numbered)(structureStrings-1), filled("last", n)) }
	sum := func(n int) []item { return append(many(100_000, numbered)(10), filled("last", n)) }
	oldest, newer := credentialsOldest, wholeStructures
	return []edge{
		{name: "one string, old guest", systemd: oldest, items: one(long), most: 5000},
		{name: "one string, new guest", systemd: newer, items: one(long), most: 100_000, slack: 4},
		{name: "one value by any channel, old guest", where: hasFiles, systemd: oldest, items: one("short"), most: guestBytes + 2},
		{name: "one value by any channel, new guest", where: hasFiles, systemd: newer, items: one("short"), most: guestBytes + 2},
		{name: "an OEM string, old guest", systemd: oldest, items: raw("o", 1<<20), most: 5000},
		{name: "an OEM string, new guest", systemd: newer, items: raw("o", 1<<20), most: 100_000, slack: 4},
		{name: "the table full of strings", systemd: oldest, items: raw("o", 4000), most: 100_000},
		{name: "the length of a name", systemd: oldest, items: named(1), most: 300},
		{name: "the length of a name for fw_cfg", where: hasFiles, systemd: oldest, items: named(5000), most: 300},
		{name: "the number of values", systemd: oldest, items: many(1, numbered), most: 300},
		{name: "the number of values with long names", systemd: newer, items: many(1, longNumbered), most: 300},
		{name: "the number of empty values", systemd: oldest, items: many(0, numbered), most: 1100},
		{name: "the sum of all values", where: hasFiles, systemd: oldest, items: sum, most: 60_000},
		{
			name: "the number of strings", where: hasOneStructure, systemd: oldest,
			items: func(n int) []item { return raw("o", 1)(n - 1) }, most: 300, exact: structureStrings,
		},
		{name: "the number of strings, new guest", where: hasOneStructure, systemd: newer, items: many(1, numbered), most: 300, exact: structureStrings},
		{name: "the number of empty strings, new guest", where: hasOneStructure, systemd: newer, items: many(0, numbered), most: 300, exact: structureStrings},
		{name: "the last of 255 strings, new guest", where: hasOneStructure, systemd: newer, items: lastOf255, most: 100_000, slack: 256},
		{name: "the length of a name, new guest", where: hasOneStructure, systemd: newer, items: named(1), most: 300, exact: credential.MaxName - 1},
		{name: "the page full of short strings", where: hasOneStructure, systemd: oldest, items: raw("o", 40), most: 5000},
		{name: "the page full of values", where: hasOneStructure, systemd: oldest, items: many(44, numbered), most: 300},
		{name: "the page full of long names", where: hasOneStructure, systemd: oldest, items: many(1, longNumbered), most: 300},
		{name: "the page with the ready address", where: hasOneStructure, systemd: oldest, items: ready, most: 5000},
		{name: "the page full of text", where: hasOneStructure, systemd: oldest, items: static("t"), most: 5000},
		{name: "the page full of what is no text", where: hasOneStructure, systemd: oldest, items: static("\x00"), most: 5000},
		{name: "the body with the ready address", where: hasOneStructure, systemd: newer, items: ready, most: 100_000, slack: 16},
		{name: "the body full of values", where: hasOneStructure, systemd: newer, items: many(180, numbered), most: 300, slack: 2},
		{name: "the body full of UTF-8", where: hasOneStructure, systemd: newer, items: raw("ß€𝄞", 100), most: 100_000, slack: 80},
		{name: "the body full of lines", where: hasOneStructure, systemd: newer, items: raw("\n", 900), most: 100_000, slack: 100_000},
		{name: "a value of a MiB", where: hasOneStructure, systemd: newer, items: one("short"), most: guestBytes, slack: 4},
		{name: "the structure full of strings", where: hasOneStructure, systemd: newer, items: raw("o", 4000), most: 100_000, slack: 32},
		{name: "the structure full of what JSON escapes", where: hasOneStructure, systemd: newer, items: raw("\x01", 400), most: 100_000, slack: 16},
		{name: "the structure full of quotes", where: hasOneStructure, systemd: newer, items: raw(`"\`, 900), most: 100_000, slack: 16},
	}
}

// testEdges finds the largest set of each family that is taken, sees it arrive
// bit-exact, and the next one refused.
func (s *suite) testEdges(t *testing.T) {
	offers := s.offers()
	table, files := channels(offers)
	for _, e := range edges() {
		if e.where != nil && !e.where(table, files) {
			continue
		}
		t.Run(e.name, func(t *testing.T) { s.deliver(t, e.check(t, offers), e.systemd) })
	}
}

// check returns the largest set that is taken, and sees that it is as it must be.
func (e edge) check(t *testing.T, offers []delivery.Offer) []item {
	t.Helper()
	refusal := func(n int) string { return refusalOf(e.items(n), e.systemd, offers) }
	low, high := e.limit(t, refusal)
	t.Logf("size %d is taken, %d is not: %s", low, high, refusal(high))
	if e.exact > 0 && low != e.exact {
		t.Errorf("size %d is the largest, want %d", low, e.exact)
	}
	if v, why := judge(e.items(high), e.systemd, offers); v == mustTake {
		t.Errorf("size %d is refused, but %s", high, why)
	}
	if hasOneStructure(channels(offers)) { // there it is known to the byte what fits
		if v, _ := judge(e.items(high+e.slack), e.systemd, offers); v != mustLeave {
			t.Errorf("size %d is refused, and %d would fit", high, high+e.slack)
		}
	}
	if v, why := judge(e.items(low), e.systemd, offers); v == mustLeave {
		t.Fatalf("size %d is taken, but %s", low, why)
	}
	return e.items(low)
}

// limit returns the largest size that is taken, and the next.
func (e edge) limit(t *testing.T, refusal func(n int) string) (low, high int) {
	t.Helper()
	if why := refusal(0); why != "" {
		t.Fatalf("the smallest set is refused: %s", why)
	}
	if refusal(e.most) == "" {
		t.Fatalf("size %d is not refused", e.most)
	}
	low, high = 0, e.most
	for high-low > 1 {
		if mid := (low + high) / 2; refusal(mid) == "" {
			low = mid
		} else {
			high = mid
		}
	}
	return low, high
}
