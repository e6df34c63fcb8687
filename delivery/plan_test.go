// SPDX-License-Identifier: Apache-2.0

package delivery_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
)

// The offers of a QEMU q35 machine, more or less.
func q35() []delivery.Offer {
	return []delivery.Offer{
		{Channel: delivery.FwCfg, Items: 200, NameMax: 28, Empty: true, Needs: "the qemu_fw_cfg module"},
		{
			Channel: delivery.SMBIOS, TotalMax: 64000, StructMax: 4096, Empty: true, Raw: true,
			Needs: "CONFIG_DMI_SYSFS", Why: "the firmware's SMBIOS table ends at 65,535 bytes",
		},
	}
}

func smbiosOnly() []delivery.Offer { return q35()[1:] }

func fwCfgOnly() []delivery.Offer { return q35()[:1] }

func sec(guest string, n int) credential.Meta {
	return credential.Meta{Host: "host-" + strings.ToLower(guest), Guest: guest, Len: n}
}

func text(guest string, n int) credential.Meta {
	return credential.Meta{Guest: guest, Kind: credential.Static, Len: n, Text: true}
}

func oem(n int) credential.Meta {
	return credential.Meta{Kind: credential.OEMString, Len: n, Text: true}
}

func planned(t *testing.T, offers []delivery.Offer, systemd int, metas ...credential.Meta) delivery.Plan {
	t.Helper()
	p, refusals := delivery.Make(offers, delivery.Guest{Systemd: systemd}, metas)
	if len(refusals) > 0 {
		t.Fatalf("refused: %v", refusals)
	}
	return p
}

// refused wants one refusal that says all of want.
func refused(t *testing.T, offers []delivery.Offer, systemd int, metas []credential.Meta, want ...string) {
	t.Helper()
	p, refusals := delivery.Make(offers, delivery.Guest{Systemd: systemd}, metas)
	if len(refusals) != 1 || len(p.Entries) > 0 {
		t.Fatalf("%d refusals, %d entries, want one refusal: %v", len(refusals), len(p.Entries), refusals)
	}
	all := refusals[0].Error() + " hint: " + refusals[0].Hint
	for _, w := range want {
		if !strings.Contains(all, w) {
			t.Errorf("%q\nlacks %q", all, w)
		}
	}
	if refusals[0].Hint == "" {
		t.Errorf("no hint: %s", all)
	}
}

// where returns "NAME channel/struct" of each entry.
func where(p delivery.Plan) []string {
	var out []string
	for _, e := range p.Entries {
		s := e.Guest + " " + string(e.Channel)
		if e.Channel == delivery.SMBIOS {
			s += "/" + string(rune('0'+e.Struct))
		}
		out = append(out, s)
	}
	return out
}

func TestTheMainJob(t *testing.T) {
	p := planned(t, q35(), 257,
		sec("HOST_JWT_SECRET", 88), sec("HOST_API_KEY", 44), sec("HOST_DB_PASSWORD", 44),
		text("ENVIRONMENT", 4), text("CLUSTER", 12))
	want := []string{"CLUSTER smbios/0", "ENVIRONMENT smbios/0", "HOST_API_KEY smbios/0", "HOST_DB_PASSWORD smbios/0", "HOST_JWT_SECRET smbios/0"}
	if d := cmp.Diff(want, where(p)); d != "" {
		t.Error(d)
	}
	strs := []int{22 + 7 + 1 + 12, 22 + 11 + 1 + 4, 29 + 12 + 1 + 60, 29 + 16 + 1 + 60, 29 + 15 + 1 + 120}
	if got, want := p.Used[delivery.SMBIOS], credential.Type11Len(strs); got != want || p.Structs != 1 {
		t.Errorf("%d bytes in %d structures, want %d in one", got, p.Structs, want)
	}
	if !p.Entries[0].Text || p.Entries[2].Text {
		t.Error("static goes as text, a secret as base64")
	}
	if p.Limits[0].Channel != delivery.SMBIOS || p.Limits[0].Items != 5 || p.Limits[1].Items != 0 || p.Limits[0].BytesMax != 64000 {
		t.Errorf("limits %+v", p.Limits)
	}
	if want := (delivery.GuestUse{Systemd: 257, Bytes: 88 + 44 + 44 + 16, BytesMax: 1 << 20, Pages: 5, PagesMax: 256}); p.Guest != want {
		t.Errorf("guest %+v, want %+v", p.Guest, want)
	}
}

func TestPlanAsJSON(t *testing.T) {
	p := planned(t, q35(), 252, sec("HOST_API_KEY", 44))
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"entries":[{"host":"host-host_api_key","guest":"HOST_API_KEY","kind":"secret","bytes":44,"text":false,` +
		`"trailing_newline":false,"channel":"smbios","struct":0,"encoded":103,"as_text":false}],"structs":1,` +
		`"limits":[{"channel":"smbios","items":1,"items_max":0,"bytes":109,"bytes_max":64000,"needs":"CONFIG_DMI_SYSFS",` +
		`"why":"the firmware's SMBIOS table ends at 65,535 bytes"},` +
		`{"channel":"fw_cfg","items":0,"items_max":200,"bytes":0,"bytes_max":0,"needs":"the qemu_fw_cfg module"}],` +
		`"guest":{"systemd":252,"bytes":44,"bytes_max":1048576,"pages":1,"pages_max":256}}`
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Error(d)
	}
}

func TestNothingToDeliver(t *testing.T) {
	for _, offers := range [][]delivery.Offer{nil, q35()} {
		p := planned(t, offers, 0)
		if p.Structs != 0 || len(p.Entries) != 0 {
			t.Errorf("%+v", p)
		}
	}
	refused(t, nil, 257, []credential.Meta{sec("A", 1)}, "no channel leads into this VM", "host-a (A in the guest)")
}

// An OEM string of n characters makes a structure of n+7 bytes.
func TestPageOfOneStructure(t *testing.T) {
	// 29 + 1 + 1 for the name A: 4 * ceil(n/3) + 31 + 7 <= 4096.
	const fits = 3042
	if n := credential.Type11Len([]int{credential.BinaryStringLen("A", fits)}); n != 4094 {
		t.Fatalf("%d bytes", n)
	}
	for _, systemd := range []int{252, 256} {
		if got := where(planned(t, q35(), systemd, sec("A", fits)))[0]; got != "A smbios/0" {
			t.Errorf("%d: %s", systemd, got)
		}
		if got := where(planned(t, q35(), systemd, sec("A", fits+1)))[0]; got != "A fw_cfg" {
			t.Errorf("%d, one more: %s", systemd, got)
		}
		refused(t, smbiosOnly(), systemd, []credential.Meta{sec("A", fits+1)},
			"host-a (A in the guest): 3043 bytes cannot be delivered", "a structure of 4098 bytes", "systemd 25", "reads 4096", "systemd 257 or newer")
	}
	if got := where(planned(t, smbiosOnly(), 257, sec("A", fits+1)))[0]; got != "A smbios/0" {
		t.Errorf("257: %s", got)
	}
	// To the byte, with text: 22 + 1 + 1 + n + 7.
	planned(t, smbiosOnly(), 256, text("A", 4096-31))
	refused(t, smbiosOnly(), 256, []credential.Meta{text("A", 4096-30)}, "a structure of 4097 bytes")
	planned(t, smbiosOnly(), 256, oem(4096-7))
	refused(t, smbiosOnly(), 256, []credential.Meta{oem(4096 - 6)}, "OEM string of 4090 bytes", "a structure of 4097 bytes")
}

func TestPageOfSeveralStrings(t *testing.T) {
	for _, systemd := range []int{252, 257} {
		half := 2045 - 24                                                          // a string of 2045 characters and its NUL
		p := planned(t, smbiosOnly(), systemd, text("A", half), text("B", half-1)) // 5 + 2046 + 2045 + 1 = 4097 is one too many
		if p.Structs != 2 {
			t.Errorf("%d: 4097 bytes in %d structures", systemd, p.Structs)
		}
		p = planned(t, smbiosOnly(), systemd, text("A", half), text("B", half-2))
		if p.Structs != 1 || p.Used[delivery.SMBIOS] != 4096 {
			t.Errorf("%d: %d bytes in %d structures", systemd, p.Used[delivery.SMBIOS], p.Structs)
		}
	}
}

// A long string has its structure for itself; what comes later fills the others.
func TestLongStringIsAlone(t *testing.T) {
	p := planned(t, smbiosOnly(), 257, sec("A", 100), sec("B", 9000), sec("C", 100))
	if d := cmp.Diff([]string{"A smbios/0", "B smbios/1", "C smbios/0"}, where(p)); d != "" {
		t.Error(d)
	}
}

func TestStringsOfOneStructure(t *testing.T) {
	var metas []credential.Meta
	for range 255 {
		metas = append(metas, oem(1))
	}
	if p := planned(t, smbiosOnly(), 257, metas...); p.Structs != 1 {
		t.Errorf("255 strings in %d structures", p.Structs)
	}
	if p := planned(t, smbiosOnly(), 257, append(metas, oem(1))...); p.Structs != 2 || p.Entries[255].Struct != 1 {
		t.Errorf("256 strings in %d structures", p.Structs)
	}
}

func TestSMBIOSTotal(t *testing.T) {
	o := smbiosOnly()
	one := credential.Type11Len([]int{credential.BinaryStringLen("A", 30)})
	o[0].TotalMax = one
	planned(t, o, 257, sec("A", 30))
	o[0].TotalMax--
	refused(t, o, 257, []credential.Meta{sec("A", 30)}, "takes", "has room for", "the firmware's SMBIOS table ends at 65,535 bytes", "split it")

	o[0].TotalMax = credential.Type11Len([]int{credential.BinaryStringLen("A", 30), credential.BinaryStringLen("B", 30)})
	planned(t, o, 257, sec("A", 30), sec("B", 30))
	o[0].TotalMax--
	refused(t, o, 257, []credential.Meta{sec("A", 30), sec("B", 30)}, "host-b (B in the guest): 30 bytes", "are left", "fewer or shorter")
	if d := cmp.Diff([]string{"A smbios/0", "B fw_cfg"}, where(planned(t, append(o, fwCfgOnly()...), 257, sec("A", 30), sec("B", 30)))); d != "" {
		t.Error(d)
	}
}

func TestFwCfgLimits(t *testing.T) {
	n28 := strings.Repeat("N", 28)
	planned(t, fwCfgOnly(), 257, sec(n28, 1))
	refused(t, fwCfgOnly(), 257, []credential.Meta{sec(n28+"N", 1)}, "29 characters and a fw_cfg key has room for 28", "shorten the guest name to 28 characters")
	refused(t, fwCfgOnly(), 257, []credential.Meta{sec(".A", 1)}, `begins with "."`, "another guest name")
	refused(t, fwCfgOnly(), 257, []credential.Meta{oem(3)}, "OEM string of 3 bytes", "carries no OEM strings")

	o := fwCfgOnly()
	o[0].Items = 1
	planned(t, o, 257, sec("A", 1))
	refused(t, o, 257, []credential.Meta{sec("A", 1), sec("B", 1)}, "1 of 1 items are taken")
	o[0].Items, o[0].TotalMax = 0, 10
	planned(t, o, 257, sec("A", 4), sec("B", 6))
	refused(t, o, 257, []credential.Meta{sec("A", 4), sec("B", 7)}, "7 bytes, and 6 of 10 are left")
	refused(t, o, 257, []credential.Meta{sec("A", 11)}, "has room for 10")
	o[0].TotalMax, o[0].ItemMax = 0, 5
	planned(t, o, 257, sec("A", 5))
	refused(t, o, 257, []credential.Meta{sec("A", 6)}, "takes 5 bytes for one value")
	o[0].Empty = false
	refused(t, o, 257, []credential.Meta{sec("A", 0)}, "does not carry an empty value")
	o[0].NameMax = 3
	planned(t, o, 257, sec("AAA", 1))
	refused(t, o, 257, []credential.Meta{sec("AAAA", 1)}, "has 4 characters and 3 is the most", "to 3 characters")
}

// What only one channel can carry gets its place before what has a choice.
func TestOnlyOneWay(t *testing.T) {
	o := q35()
	o[0].Empty = false
	long := strings.Repeat("Z", 200)
	o[1].TotalMax = credential.Type11Len([]int{100, credential.BinaryStringLen("Y", 0), credential.BinaryStringLen(long, 10)})
	p := planned(t, o, 257, sec("A", 10), sec("B=B", 10), sec("Y", 0), sec(long, 10), oem(100))
	if d := cmp.Diff([]string{"A fw_cfg", "B=B fw_cfg", "Y smbios/0", long + " smbios/0", " smbios/0"}, where(p)); d != "" {
		t.Error(d)
	}
	refused(t, smbiosOnly(), 257, []credential.Meta{sec("B=B", 1)}, "ends the name in an SMBIOS string", `without "="`)
	o = smbiosOnly()
	o[0].Raw = false
	refused(t, o, 257, []credential.Meta{oem(1)}, "OEM string of 1 bytes", `remove "oem-strings:"`)
}

// When the order of names leaves too many for the next channel, the short ones
// go by SMBIOS.
func TestShortOnesFirstWhenTheOthersDoNotFit(t *testing.T) {
	o := q35()
	o[0].Items = 1
	o[1].TotalMax = 1000
	p := planned(t, o, 257, sec("A", 600), sec("B", 200), sec("C", 200))
	if d := cmp.Diff([]string{"A fw_cfg", "B smbios/0", "C smbios/0"}, where(p)); d != "" {
		t.Error(d)
	}
}

// A VMM that has one structure: everything is in it.
func TestOneStructure(t *testing.T) {
	o := smbiosOnly()
	o[0].Structs = 1
	planned(t, o, 252, text("A", 2000), text("B", 4096-6-2000-24-1-25))
	refused(t, o, 252, []credential.Meta{text("A", 2000), text("B", 4096-6-2000-24-1-24)}, "1 of 1 structures are full")
	o[0].StructMax = 0
	planned(t, o, 257, text("A", 5000), text("B", 5000))
	if p := planned(t, o, 257, text("A", 50000), text(credential.NotifySocket, 20)); p.Structs != 1 {
		t.Errorf("%d structures", p.Structs)
	}
}

// READY's address is the last string: a READY proves that the table was read to
// its end. Its place is kept for it.
func TestNotifySocketIsLast(t *testing.T) {
	notify := text(credential.NotifySocket, 20)
	p := planned(t, smbiosOnly(), 257, text("A", 4000), notify, text("x", 100), text("z", 10), oem(50))
	last := 0
	for _, e := range p.Entries {
		last = max(last, e.Struct)
	}
	if i := slices.IndexFunc(p.Entries, func(e delivery.Entry) bool { return e.Guest == notify.Guest }); p.Entries[i].Struct != last {
		t.Errorf("in structure %d of %d: %v", p.Entries[i].Struct, p.Structs, where(p))
	}
	o := q35()
	need := credential.Type11Len([]int{credential.TextStringLen("A", 50)}) + credential.Type11Len([]int{credential.TextStringLen(notify.Guest, 20)})
	o[1].TotalMax = need
	if d := cmp.Diff([]string{"A smbios/0", "vmm.notify_socket smbios/0"}, where(planned(t, o, 257, text("A", 50), notify))); d != "" {
		t.Error(d)
	}
	o[1].TotalMax--
	if d := cmp.Diff([]string{"A fw_cfg", "vmm.notify_socket smbios/0"}, where(planned(t, o, 257, text("A", 50), notify))); d != "" {
		t.Error(d)
	}
}

func TestGuestLimits(t *testing.T) {
	o := fwCfgOnly()
	o[0].Items = 0
	planned(t, o, 257, sec("A", 1<<20))
	refused(t, o, 257, []credential.Meta{sec("A", 1<<20+1)}, "1048577 bytes", "takes 1048576 for one", "split it")
	planned(t, o, 257, sec("A", 1<<19), sec("B", 1<<19))
	refused(t, o, 257, []credential.Meta{sec("A", 1<<19), sec("B", 1<<19+1), sec("C", 5)}, "1048582 bytes in all", "host-b (524289), host-a (524288), host-c (5)")
	// Less than 1 MiB, but one page too many: each takes whole pages.
	planned(t, o, 257, sec("A", 255*4096), sec("B", 1))
	refused(t, o, 257, []credential.Meta{sec("A", 254*4096+1), sec("B", 1), sec("C", 1)}, "3 credentials take 257 pages", "room for 256")

	many := func(n, length int) []credential.Meta {
		var out []credential.Meta
		for i := range n {
			out = append(out, sec("N"+strings.Repeat("x", i%27)+string(rune('A'+i/27%26))+string(rune('A'+i/702)), length))
		}
		return out
	}
	o[0].NameMax = 0
	for i := range o {
		o[i].NameMax = 0
	}
	planned(t, smbiosOnly(), 252, many(256, 1)...)
	refused(t, smbiosOnly(), 252, many(257, 1), "257 credentials take 257 pages")
	big := smbiosOnly()
	big[0].TotalMax = 0
	planned(t, big, 252, many(1023, 0)...)
	refused(t, big, 252, many(1024, 0), "1024 credentials", "room for 1023 files")
}

func TestWhatNoSetHolds(t *testing.T) {
	refused(t, q35(), 257, []credential.Meta{sec("A", 1), sec("A", 2)}, "two of this name")
	refused(t, q35(), 257, []credential.Meta{sec("A/B", 1)}, "no credential name")
	refused(t, q35(), 251, []credential.Meta{sec("A", 1)}, "systemd 251 in the guest is too old", "systemd 252")
	planned(t, q35(), 0, sec("A", 1))
}

// Everything that does not fit is named at once, and nothing is delivered.
func TestAllRefusalsAtOnce(t *testing.T) {
	p, refusals := delivery.Make(smbiosOnly(), delivery.Guest{Systemd: 252}, []credential.Meta{
		sec("A", 5000), sec("B", 10), sec("C=C", 1), sec("D", 9000),
	})
	var names []string
	for _, r := range refusals {
		names = append(names, r.Guest)
	}
	if d := cmp.Diff([]string{"A", "C=C", "D"}, names); d != "" || len(p.Entries) != 0 {
		t.Error(d)
	}
}
