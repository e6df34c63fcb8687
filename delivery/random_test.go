// SPDX-License-Identifier: Apache-2.0

package delivery_test

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/secret"
)

// checks sets how many random cases the next rapid.Check tries.
func checks(t *testing.T, n int) {
	t.Helper()
	if testing.Short() {
		n /= 10
	}
	f := flag.Lookup("rapid.checks")
	old := f.Value.String()
	must(t, f.Value.Set(strconv.Itoa(n)))
	t.Cleanup(func() { must(t, f.Value.Set(old)) })
}

// randomSet is a set and what a guest should have of it.
type randomSet struct {
	set     *credential.Set
	want    map[string][]byte
	strings []string // OEM strings in order
}

func drawSet(t *rapid.T, a *secret.Arena) randomSet {
	r := randomSet{set: credential.NewSet(), want: map[string][]byte{}}
	names := rapid.SliceOfNDistinct(drawName(), 0, 12, rapid.ID[string]).Draw(t, "names")
	if rapid.IntRange(0, 3).Draw(t, "notify") == 0 && !slices.Contains(names, credential.NotifySocket) {
		names = append(names, credential.NotifySocket)
	}
	for _, name := range names {
		v := drawValue(t)
		if rapid.Bool().Draw(t, "static") {
			must(t, r.set.AddStatic(name, string(v)))
		} else {
			must(t, r.set.AddSecret("host-"+name[:min(len(name), 200)], name, value(t, a, v)))
		}
		r.want[name] = v
	}
	for range rapid.IntRange(0, 3).Draw(t, "oem") {
		s := strings.ReplaceAll(string(drawValue(t)), "\x00", "0")
		if s == "" {
			s = "x"
		}
		r.strings = append(r.strings, s)
		must(t, r.set.AddOEMString(s))
	}
	return r
}

func drawName() *rapid.Generator[string] {
	short := rapid.StringMatching(`[A-Z_=.,%" ]{1,6}`)
	edge := rapid.Custom(func(t *rapid.T) string {
		n := rapid.SampledFrom([]int{27, 28, 29, 254, 255}).Draw(t, "length")
		return rapid.StringOfN(rapid.RuneFrom([]rune("ABCXYZ")), n, n, -1).Draw(t, "long")
	})
	return rapid.OneOf(short, short, short, edge).Filter(func(s string) bool { return credential.CheckName(s) == nil })
}

// drawValue draws lengths that lie about the limits more often than not.
func drawValue(t *rapid.T) []byte {
	near := func(n int) *rapid.Generator[int] { return rapid.IntRange(max(n-3, 0), n+3) }
	length := rapid.OneOf(
		rapid.IntRange(0, 3), rapid.IntRange(0, 200), rapid.IntRange(0, 200), rapid.IntRange(0, 5000),
		near(3030), near(4060), near(4096), near(2*4096),
		rapid.Custom(func(t *rapid.T) int {
			if rapid.IntRange(0, 39).Draw(t, "huge?") > 0 {
				return 1
			}
			return rapid.SampledFrom([]int{47000, 64000, 255 * 4096, 1<<20 - 1, 1 << 20}).Draw(t, "huge")
		}),
	).Draw(t, "length")
	src := rand.NewChaCha8([32]byte{byte(rapid.Uint8().Draw(t, "seed")), byte(length)})
	b := make([]byte, length)
	_, _ = src.Read(b) // never fails
	if rapid.Bool().Draw(t, "printable") {
		for i := range b {
			b[i] = " abcdefghijklmnopqrstuvwxyz=,\n\"\t"[b[i]%32]
		}
	}
	return b
}

// drawOffers draws a real machine's offers, or any.
func drawOffers(t *rapid.T) []delivery.Offer {
	if real := rapid.IntRange(0, 4).Draw(t, "real"); real > 0 {
		return [][]delivery.Offer{q35(), q35(), q35(), smbiosOnly()}[real-1]
	}
	n := func(label string, of ...int) int { return rapid.SampledFrom(of).Draw(t, label) }
	smbios := delivery.Offer{
		Channel: delivery.SMBIOS, Items: n("items", 0, 0, 0, 1, 5), NameMax: n("names", 0, 0, 0, 5),
		TotalMax: n("total", 0, 64000, 64000, 4096, 700), StructMax: n("struct", 4096, 4096, 0, 300),
		Structs: n("structs", 0, 0, 0, 1, 2), ItemMax: n("item", 0, 0, 0, 100),
		Empty: n("empty", 1, 1, 0) == 1, Raw: n("raw", 1, 1, 0) == 1,
	}
	fwCfg := delivery.Offer{
		Channel: delivery.FwCfg, Items: n("fw items", 200, 200, 0, 1), NameMax: n("fw names", 28, 0, 3),
		TotalMax: n("fw total", 0, 0, 5000), ItemMax: n("fw item", 0, 0, 4096), Empty: n("fw empty", 1, 0) == 1,
	}
	return [][]delivery.Offer{{smbios, fwCfg}, {fwCfg, smbios}, {smbios}, {fwCfg}, {smbios, fwCfg}}[n("offers", 0, 1, 2, 3, 4)]
}

// Every random set is either refused, or the guest has exactly these bytes under
// these names, and no limit of any offer is passed.
func TestRefusedOrExact(t *testing.T) {
	checks(t, 10_000)
	refusedSets, sets := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		a := secret.NewArena()
		defer a.Close()
		r := drawSet(t, a)
		offers := drawOffers(t)
		systemd := rapid.SampledFrom([]int{252, 254, 256, 257, 262}).Draw(t, "systemd")
		metas := r.set.Metas()
		plan, refusals := delivery.Make(offers, delivery.Guest{Systemd: systemd}, metas)
		again, _ := delivery.Make(offers, delivery.Guest{Systemd: systemd}, metas)
		if d := cmp.Diff(plan, again); d != "" {
			t.Fatalf("the same arguments gave another plan: %s", d)
		}
		sets++
		if len(refusals) > 0 {
			refusedSets++
			if len(plan.Entries) > 0 {
				t.Fatal("a plan beside refusals")
			}
			return
		}
		checkLimits(t, offers, plan)
		payload, err := plan.Encode(r.set)
		must(t, err)
		defer payload.Close()
		checkPayload(t, plan, payload)
		got := boot(t, systemd, payload)
		if len(got.Complaints) > 0 {
			t.Fatalf("the guest: %q", got.Complaints)
		}
		if d := cmp.Diff(r.want, got.Credentials, cmp.Comparer(bytes.Equal)); d != "" {
			t.Fatalf("%.2000s", d)
		}
		checkStrings(t, r, plan, got.Strings)
	})
	t.Logf("%d sets, %d refused", sets, refusedSets)
	if refusedSets*10 < sets || refusedSets*10 > sets*9 {
		t.Error("the random sets are too alike to show anything")
	}
}

func checkLimits(t *rapid.T, offers []delivery.Offer, p delivery.Plan) {
	t.Helper()
	items, bytes := map[delivery.Channel]int{}, map[delivery.Channel]int{}
	structs, counts := make([]int, p.Structs), make([]int, p.Structs)
	for _, e := range p.Entries {
		items[e.Channel]++
		bytes[e.Channel] += e.Encoded
		if e.Channel == delivery.SMBIOS {
			structs[e.Struct] += e.Encoded
			counts[e.Struct]++
		}
	}
	bytes[delivery.SMBIOS] += 6 * p.Structs
	for _, o := range offers {
		over := func(what string, n, most int) {
			if most > 0 && n > most {
				t.Fatalf("%s: %d %s, the offer has %d", o.Channel, n, what, most)
			}
		}
		if p.Used[o.Channel] != bytes[o.Channel] {
			t.Fatalf("%s: Used says %d, the entries %d", o.Channel, p.Used[o.Channel], bytes[o.Channel])
		}
		over("items", items[o.Channel], o.Items)
		over("bytes", bytes[o.Channel], o.TotalMax)
		for _, e := range p.Entries {
			if e.Channel == o.Channel {
				over("bytes in a value", e.Len, o.ItemMax)
				over("characters in a name", len(e.Guest), o.NameMax)
				if e.Len == 0 && !o.Empty || e.Kind == credential.OEMString && !o.Raw {
					t.Fatalf("%s does not carry %+v", o.Channel, e)
				}
			}
		}
		if o.Channel == delivery.SMBIOS {
			over("structures", p.Structs, o.Structs)
			for i, n := range structs {
				if counts[i] > 1 {
					over("bytes in a structure of several strings", n+6, o.StructMax)
				}
			}
		}
		delete(items, o.Channel)
	}
	if len(items) > 0 {
		t.Fatalf("channels that nobody offered: %v", items)
	}
}

func checkPayload(t *rapid.T, p delivery.Plan, payload *delivery.Payload) {
	t.Helper()
	total, strs := 0, 0
	for _, r := range payload.SMBIOS {
		total += r.Len()
	}
	for _, r := range payload.Strings {
		strs += r.Len() + 1
	}
	if total != p.Used[delivery.SMBIOS] || len(payload.SMBIOS) != p.Structs || strs+6*p.Structs != total {
		t.Fatalf("%d bytes in %d structures, the plan says %d in %d", total, len(payload.SMBIOS), p.Used[delivery.SMBIOS], p.Structs)
	}
	total = 0
	for _, b := range payload.FwCfg {
		total += b.Rope.Len()
	}
	if total != p.Used[delivery.FwCfg] {
		t.Fatalf("%d bytes in fw_cfg, the plan says %d", total, p.Used[delivery.FwCfg])
	}
}

// checkStrings wants the OEM strings in their order, and READY's address last.
func checkStrings(t *rapid.T, r randomSet, p delivery.Plan, got []string) {
	t.Helper()
	var raw []string
	for _, s := range got {
		if slices.Contains(r.strings, s) {
			raw = append(raw, s)
		}
	}
	if !slices.Equal(raw, r.strings) {
		t.Fatalf("OEM strings are %.200q, want %.200q", raw, r.strings)
	}
	for _, e := range p.Entries {
		if e.Guest == credential.NotifySocket && e.Channel == delivery.SMBIOS && !strings.Contains(got[len(got)-1], ":vmm.notify_socket=") {
			t.Fatalf("the last string is %.60q", got[len(got)-1])
		}
	}
}

// Nothing is refused that a channel could carry: with one that takes everything
// but what no fw_cfg key can name, only such names and the guest's own limits are
// reasons.
func TestRefusedForAReasonOnly(t *testing.T) {
	checks(t, 2_000)
	rapid.Check(t, func(t *rapid.T) {
		a := secret.NewArena()
		defer a.Close()
		r := drawSet(t, a)
		offers := []delivery.Offer{
			{Channel: delivery.SMBIOS, Empty: true, Raw: true}, // no limit but the guest's
			{Channel: delivery.FwCfg, Empty: true},
		}
		total, pages, long := 0, 0, false
		for _, m := range r.set.Metas() {
			if m.Kind == credential.OEMString {
				continue
			}
			total += m.Len
			pages += (m.Len + 4095) / 4096
			str := len("io.systemd.credential.binary:=") + len(m.Guest) + (m.Len+2)/3*4
			if m.Text {
				str = len("io.systemd.credential:=") + len(m.Guest) + m.Len
			}
			noFwCfg := len(m.Guest) > 28 || m.Guest[0] == '.'
			noSMBIOS := strings.Contains(m.Guest, "=") || str+7 > 1<<20
			long = long || noFwCfg && noSMBIOS
		}
		for _, s := range r.strings {
			long = long || len(s) > 1<<20-7
		}
		_, refusals := delivery.Make(offers, delivery.Guest{Systemd: 257}, r.set.Metas())
		if want := total > 1<<20 || pages > 256 || long; want != (len(refusals) > 0) {
			t.Fatalf("%d bytes, %d pages, want refused %v: %v", total, pages, want, refusals)
		}
	})
}
