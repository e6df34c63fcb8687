// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/secret"
)

// made is a log of several files, with its first key and its head.
func made(t *testing.T) (*memDisk, *Key, Head) {
	t.Helper()
	d := newMemDisk(7)
	k := first(t, d)
	story(t, d, 0, 12)
	h, err := (&Reader{d, "audit.log"}).Position()
	if err != nil {
		t.Fatal(err)
	}
	return d, k, h
}

// texts are the log's files, oldest first.
func (d *memDisk) texts() []string {
	names := slices.Collect(maps.Keys(d.names))
	return append(numbered(names, "audit.log"), "audit.log")
}

// where each record's line is.
type place struct {
	file       string
	begin, end int // with its newline
}

func places(d *memDisk) []place {
	var out []place
	for _, name := range d.texts() {
		at := 0
		for line := range bytes.Lines(d.names[name].now) {
			out = append(out, place{name, at, at + len(line)})
			at += len(line)
		}
	}
	return out
}

func (d *memDisk) line(p place) []byte { return bytes.Clone(d.names[p.file].now[p.begin:p.end]) }

func (d *memDisk) replace(p place, with []byte) {
	n := d.names[p.file]
	n.now = slices.Concat(n.now[:p.begin], with, n.now[p.end:])
}

// faults verifies what became of a log.
func faults(t *testing.T, d *memDisk, c Check) []Fault {
	t.Helper()
	rep, err := (&Reader{d, "audit.log"}).Verify(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return rep.Faults
}

// wantFault wants the first fault to be about a record, in these words.
func wantFault(t *testing.T, got []Fault, seq int, words string) {
	t.Helper()
	if len(got) == 0 {
		t.Fatalf("record %d: nothing is found", seq)
	}
	if int(got[0].Seq) != seq || !strings.Contains(got[0].What, words) {
		t.Errorf("found %+v, want record %d, %q", got[0], seq, words)
	}
}

func TestWholeLog(t *testing.T) {
	d, k, h := made(t)
	rep := wantWhole(t, d, Check{Key: k, Heads: []Known{{h, "the test"}}})
	if rep.Records != h.Seq || rep.Keyed != h.Seq || rep.Last != h || rep.Files < 3 || rep.First != 1 || rep.FirstKeyed != 1 {
		t.Errorf("%+v", rep)
	}
	if rep := wantWhole(t, d, Check{}); rep.Keyed != 0 {
		t.Errorf("without a key: %+v", rep)
	}
}

// TestEditIsFound: every byte. A flipped bit anywhere is found in its record, by the chain alone.
func TestEditIsFound(t *testing.T) {
	d, _, _ := made(t)
	ps := places(d)
	step := 1
	if testing.Short() {
		step = 29
	}
	for i, p := range ps[:5] {
		was := d.line(p)
		for at := i % step; at < len(was); at += step {
			now := bytes.Clone(was)
			now[at] ^= 1 << (at % 7)
			d.replace(p, now)
			got := faults(t, d, Check{})
			if len(got) == 0 {
				t.Fatalf("record %d: byte %d, %q for %q, is not found", i+1, at, now[at], was[at])
			}
			if int(got[0].Seq) != i+1 && !strings.Contains(got[0].What, fmt.Sprintf("record %d should be here", i+1)) {
				t.Fatalf("record %d, byte %d: %+v", i+1, at, got)
			}
			d.names[p.file].now = slices.Concat(d.names[p.file].now[:p.begin], was, d.names[p.file].now[p.begin+len(now):])
		}
	}
}

func TestDeletionIsFound(t *testing.T) {
	for i := range len(places(second(made(t)))) {
		d, k, h := made(t)
		ps := places(d)
		d.replace(ps[i], nil)
		c := Check{Key: k}
		words := "missing"
		if i == len(ps)-1 {
			c.Heads = []Known{{h, "the journal"}}
			words = "the journal knows record"
		}
		wantFault(t, faults(t, d, c), i+1, words)
	}
}

func second(d *memDisk, _ *Key, _ Head) *memDisk { return d }

func TestSwapIsFound(t *testing.T) {
	whole := second(made(t))
	ps := places(whole)
	for i := range ps {
		for j := i + 1; j < len(ps); j++ {
			d := whole.reboot(false)
			a, b := d.line(ps[i]), d.line(ps[j])
			d.replace(ps[j], a) // the later one first: places before it stay
			d.replace(ps[i], b)
			wantFault(t, faults(t, d, Check{}), i+1, "")
		}
	}
}

func TestTruncationIsFound(t *testing.T) {
	n := len(places(second(made(t))))
	for keep := range n {
		d, k, h := made(t)
		ps := places(d)
		for _, p := range slices.Backward(ps[keep:]) {
			d.replace(p, nil)
		}
		wantFault(t, faults(t, d, Check{Key: k, Heads: []Known{{h, "the journal"}}}), keep+1, "the log was cut, or is an older copy")
		// The key's file knows it, too: nothing is added to what was cut.
		if err := newLog(d, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release}); err == nil {
			t.Errorf("a log cut to %d records is continued", keep)
		}
	}
}

// TestOlderCopyIsFound: the whole of the log, and its key's file, from before.
func TestOlderCopyIsFound(t *testing.T) {
	d, k, _ := made(t)
	old := d.reboot(false)
	story(t, d, 20, 1)
	h, err := (&Reader{d, "audit.log"}).Position()
	if err != nil {
		t.Fatal(err)
	}
	if got := faults(t, old, Check{Key: k}); len(got) > 0 {
		t.Errorf("an older copy is whole by itself: %v", got)
	}
	wantFault(t, faults(t, old, Check{Heads: []Known{{h, "the journal"}}}), len(places(old))+1, "older copy")
	later, err := newLog(d, "audit.log", Options{}).Key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	wantFault(t, faults(t, old, Check{Key: later}), len(places(old))+1, "older copy")
	// It goes on, in another way than the one that is known.
	story(t, old, 30, 3)
	wantFault(t, faults(t, old, Check{Heads: []Known{{h, "the journal"}}}), int(h.Seq), "not the one that the journal knows")
}

// rewrite makes a log anew from a record on, all hashes right, as who has taken the
// host over with the key of now can.
func rewrite(t *testing.T, d *memDisk, from int, edit func(*Record)) {
	t.Helper()
	f := &memFile{d: d, n: d.names["audit.log.key"]}
	a := secret.NewArena()
	defer a.Close()
	k, _, _, err := readKeys(a, f)
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	ps := places(d)
	lines := map[string][]byte{}
	var prev Hash
	for i, p := range ps {
		line := d.line(p)
		s, err := unseal(line[:len(line)-1])
		if err != nil {
			t.Fatal(err)
		}
		if i+1 >= from {
			s.Prev = prev
			edit(&s.Record)
			if line, s.hash, err = seal(nil, &s.Record, &k.ratchet); err != nil {
				t.Fatal(err)
			}
		}
		prev = s.hash
		lines[p.file] = append(lines[p.file], line...)
	}
	for name, b := range lines {
		d.names[name].now = b
	}
}

// TestRewritingIsFound: a later attacker has the key of now, and makes the chain anew.
func TestRewritingIsFound(t *testing.T) {
	n := len(places(second(made(t))))
	for from := 1; from <= n; from++ {
		d, k, h := made(t)
		rewrite(t, d, from, func(r *Record) {
			if int(r.Seq) == from {
				r.VM = "another"
			}
		})
		if got := faults(t, d, Check{}); len(got) > 0 {
			t.Fatalf("the chain was made anew, and is said to be wrong: %v", got)
		}
		wantFault(t, faults(t, d, Check{Key: k}), from, "MAC")
		wantFault(t, faults(t, d, Check{Heads: []Known{{h, "the journal"}}}), int(h.Seq), "not the one that the journal knows")
	}
}

// TestReplacedRecord: one record made anew without those after it.
func TestReplacedRecord(t *testing.T) {
	d, _, _ := made(t)
	whole := d.reboot(false)
	rewrite(t, d, 5, func(r *Record) { r.VM = "another" })
	ps := places(whole)
	whole.replace(ps[4], d.line(places(d)[4]))
	wantFault(t, faults(t, whole, Check{}), 5, "it was replaced")
}

// TestFilesTakenAway: the oldest files, on purpose or not.
func TestFilesTakenAway(t *testing.T) {
	d, k, _ := made(t)
	old := d.texts()[0]
	n := bytes.Count(d.names[old].now, []byte("\n"))
	delete(d.names, old)
	wantFault(t, faults(t, d, Check{Key: k}), 1, fmt.Sprintf("the log begins with record %d", n+1))
	wantWhole(t, d, Check{Key: k, First: uint64(n + 1)})
	if err := newLog(d, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release}); err != nil {
		t.Errorf("it cannot go on: %v", err)
	}
}

// TestKeyOfAnotherLog names both.
func TestKeyOfAnotherLog(t *testing.T) {
	d, _, _ := made(t)
	other := first(t, newMemDisk(9))
	got := faults(t, d, Check{Key: other})
	wantFault(t, got, 1, "the key is of log "+other.Log)
	if len(got) != maxFaults {
		t.Errorf("%d faults, want %d", len(got), maxFaults)
	}
}

// TestLaterKey verifies what was written since.
func TestLaterKey(t *testing.T) {
	d, _, h := made(t)
	later, err := newLog(d, "audit.log", Options{}).Key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	wantWhole(t, d, Check{Key: later})
	story(t, d, 20, 2)
	if rep := wantWhole(t, d, Check{Key: later}); rep.FirstKeyed != h.Seq+1 || rep.Keyed == 0 {
		t.Errorf("%+v", rep)
	}
}

// TestRefusesToGoOn: what was changed by someone else is not added to.
func TestRefusesToGoOn(t *testing.T) {
	for name, change := range map[string]func(*memDisk){
		"is gone":                  func(d *memDisk) { delete(d.names, "audit.log") },
		"its key audit.log.key is": func(d *memDisk) { delete(d.names, "audit.log.key") },
		"no whole record":          func(d *memDisk) { d.names["audit.log"].now[0] = '!' },
		"is not the one that was": func(d *memDisk) {
			b := d.names["audit.log"].now
			b[len(b)-200] ^= 1
		},
		"it was cut": func(d *memDisk) {
			n := d.names["audit.log"]
			n.now = n.now[:len(n.now)-1]
		},
		"it was replaced": func(d *memDisk) { d.names["audit.log"] = d.names["audit.log.1"] },
	} {
		d, _, _ := made(t)
		change(d)
		err := newLog(d, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
			continue
		}
		if hint := err.(*Error).Hint(); !strings.Contains(hint, "move this one and /mem/audit.log.key away") {
			t.Errorf("%s: the hint is %q", name, hint)
		}
	}
}

// TestRepeatedRecord: a copy of a record further on.
func TestRepeatedRecord(t *testing.T) {
	d, _, _ := made(t)
	ps := places(d)
	d.replace(place{ps[6].file, ps[6].end, ps[6].end}, d.line(ps[5]))
	wantFault(t, faults(t, d, Check{}), 6, "it is here twice, or was moved")
}

// TestLinkedTwice: a crash came after the full file had its number, and before the
// next one had its name.
func TestLinkedTwice(t *testing.T) {
	d, k, h := made(t)
	n := len(d.texts())
	d.names[fmt.Sprintf("audit.log.%d", n)] = d.names["audit.log"]
	if rep := wantWhole(t, d, Check{Key: k, Heads: []Known{{h, "it"}}}); rep.Files != n {
		t.Errorf("%d files, want %d", rep.Files, n)
	}
}

// TestForeignLog: a new key beside the log of another.
func TestForeignLog(t *testing.T) {
	d, _, _ := made(t)
	fresh := newMemDisk(2)
	first(t, fresh)
	d.names["audit.log.key"], d.names["audit.log"] = fresh.names["audit.log.key"], d.names["audit.log.1"]
	delete(d.names, "audit.log.1")
	was := bytes.Clone(d.names["audit.log"].now)
	err := newLog(d, "audit.log", Options{}).Append(t.Context(), Entry{Op: Release})
	if err == nil || !strings.Contains(err.Error(), "its first record is not of this key") || !bytes.Equal(d.names["audit.log"].now, was) {
		t.Errorf("%v; changed: %v", err, !bytes.Equal(d.names["audit.log"].now, was))
	}
}
