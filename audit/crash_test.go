// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/secret"
)

// story appends batches of known entries, in files that are soon full, and returns
// the reasons of those that were acknowledged.
func story(t *testing.T, d disk, from, batches int) (acked []string) {
	l := newLog(d, "audit.log", Options{MaxSize: 3000})
	for b := from; b < from+batches; b++ {
		var es []Entry
		for i := range 1 + b%3 {
			es = append(es, Entry{Op: Release, VM: "vm", Decision: Allow, Reason: fmt.Sprintf("%d.%d", b, i)})
		}
		if err := l.Append(t.Context(), es...); err != nil {
			if !errors.Is(err, errCrash) {
				t.Fatalf("batch %d: %v", b, err)
			}
			return acked
		}
		for _, e := range es {
			acked = append(acked, e.Reason)
		}
	}
	return acked
}

// wantStory wants the acknowledged records in order, and of a batch of which a part
// is missing a word of it.
func wantStory(t *testing.T, d disk, acked []string) {
	t.Helper()
	var got []string
	open := false
	for _, r := range all(t, d) {
		if open && r.Item == 1 && r.Op != Recover {
			t.Errorf("record %d follows a batch that was cut, without a word", r.Seq)
		}
		open = r.Item < r.Of
		if r.Op == Release {
			got = append(got, r.Reason)
		}
	}
	if open {
		t.Error("the last batch is cut")
	}
	at := 0
	for _, want := range acked {
		for at < len(got) && got[at] != want {
			at++
		}
		if at++; at > len(got) {
			t.Fatalf("acknowledged, and not there: %s; there are %v", want, got)
		}
	}
}

// first is the first key, as who keeps it elsewhere has it.
func first(t *testing.T, d disk) *Key {
	t.Helper()
	k, err := newLog(d, "audit.log", Options{}).Key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// TestCrashAtEveryStep: after a crash at every write, sync and change of a name, by
// a kill or a loss of power, and after a second one while that is mended, the log
// goes on, is whole for who has the first key, holds all that was acknowledged, and
// says what was cut.
func TestCrashAtEveryStep(t *testing.T) {
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	recovered := 0
	for seed := range seeds {
		for at := 1; ; at++ {
			d := newMemDisk(seed*1000 + uint64(at))
			k := first(t, d)
			d.steps, d.crashAt = 0, at
			acked := story(t, d, 0, 7)
			if !d.down {
				break // the story is over before
			}
			for _, powerLoss := range []bool{false, true} {
				again := d.reboot(powerLoss)
				again.crashAt = int(1 + seed*3 + uint64(at)%11)
				more := append(acked[:len(acked):len(acked)], story(t, again, 100, 2)...)
				again = again.reboot(powerLoss)
				more = append(more, story(t, again, 200, 3)...)
				rep := wantWhole(t, again, Check{Key: k})
				if rep.Keyed != rep.Records || rep.Unwritten {
					t.Errorf("%d of %d records carry the key's MAC; unwritten: %v", rep.Keyed, rep.Records, rep.Unwritten)
				}
				wantStory(t, again, more)
				wantOneKey(t, again)
				for _, r := range all(t, again) {
					if r.Op == Recover {
						recovered++
					}
				}
				if t.Failed() {
					t.Fatalf("seed %d, step %d, loss of power: %v", seed, at, powerLoss)
				}
			}
		}
	}
	if recovered == 0 {
		t.Error("nothing was ever cut: the crashes prove nothing")
	}
	t.Logf("%d records of what a crash had cut", recovered)
}

// wantOneKey: no older key stays on the disk.
func wantOneKey(t *testing.T, d *memDisk) {
	t.Helper()
	n := bytes.Count(d.names["audit.log"+keySuffix].now, []byte(slotMagic))
	if n != 1 {
		t.Errorf("%d keys are on the disk, want one", n)
	}
}

// TestOldKeysAreGone: after each batch no earlier key is anywhere on the disk.
func TestOldKeysAreGone(t *testing.T) {
	d := newMemDisk(1)
	l := newLog(d, "audit.log", Options{})
	var old [][]byte
	for range 5 {
		k, err := l.Key(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = k.value.Use(func(b []byte) error { old = append(old, bytes.Clone(b)); return nil })
		if !bytes.Contains(d.names["audit.log.key"].now, old[len(old)-1]) {
			t.Fatal("the key of now is not found: this search proves nothing")
		}
		if err := l.Append(t.Context(), Entry{Op: Release}); err != nil {
			t.Fatal(err)
		}
		for i, k := range old {
			for name, n := range d.names {
				if bytes.Contains(n.now, k) {
					t.Errorf("key %d is in %s", i, name)
				}
			}
		}
	}
}

// TestFullDisk: an error in the middle of a line leaves the log as it was.
func TestFullDisk(t *testing.T) {
	for fails := 1; fails < 12; fails++ {
		d := newMemDisk(uint64(fails))
		k := first(t, d)
		acked := story(t, d, 0, 2)
		calls := 0
		d.fail = func(string) (int, error) {
			if calls++; calls == fails {
				return 130, fs.ErrInvalid
			}
			return 0, nil
		}
		l := newLog(d, "audit.log", Options{})
		failed := false
		for range 4 {
			err := l.Append(t.Context(), Entry{Op: Release, Reason: "no"}, Entry{Op: Release, Reason: "no"})
			if err != nil && (!errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "/mem/audit.log")) {
				t.Fatal(err)
			}
			failed = failed || err != nil
		}
		if !failed {
			t.Errorf("failure %d never came", fails)
		}
		d.fail = nil
		acked = append(acked, story(t, d, 5, 2)...)
		wantWhole(t, d, Check{Key: k})
		wantStory(t, d, acked)
		for _, r := range all(t, d) {
			if r.Op == Recover {
				t.Errorf("failure %d: record %d says that something was cut: %s", fails, r.Seq, r.Reason)
			}
		}
	}
}

// TestCrashWhileItIsMade: a first start that crashes leaves nothing that keeps the
// next one from beginning.
func TestCrashWhileItIsMade(t *testing.T) {
	for seed := range uint64(4) {
		for at := 1; ; at++ {
			d := newMemDisk(seed*100 + uint64(at))
			d.crashAt = at
			acked := story(t, d, 0, 1)
			if !d.down {
				break
			}
			for _, powerLoss := range []bool{false, true} {
				again := d.reboot(powerLoss)
				wantStory(t, again, append(acked[:len(acked):len(acked)], story(t, again, 1, 2)...))
				wantWhole(t, again, Check{})
			}
		}
	}
}

// TestWhatACrashLeaves: the log is ahead of its key's file by a batch, or by what is
// there of one.
func TestWhatACrashLeaves(t *testing.T) {
	batch := []Entry{{Op: Release, Reason: "a"}, {Op: Release, Reason: "b"}, {Op: Release, Reason: "c"}}
	for name, c := range map[string]struct {
		change func(log []byte) []byte
		words  string // of the Recover; empty: none
		lost   int64
		kept   int
	}{
		"the whole batch":            {func(b []byte) []byte { return b }, "", 0, 3},
		"two of three records":       {func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] }, "2 of 3 records", 0, 2},
		"two and a half":             {func(b []byte) []byte { return b[:len(b)-100] }, "2 of 3 records", -1, 2},
		"and half of the next batch": {func(b []byte) []byte { return append(b, "{\"seq\":"...) }, "cut short", 7, 3},
		"and zeros":                  {func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, "cut short", 4096, 3},
		"and another's record":       {forge, "cut short", -1, 3},
	} {
		d := newMemDisk(1)
		k := first(t, d)
		story(t, d, 0, 2)
		key := bytes.Clone(d.names["audit.log.key"].now)
		l := newLog(d, "audit.log", Options{})
		if err := l.Append(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
		n := d.names["audit.log"]
		n.now, d.names["audit.log.key"].now = c.change(bytes.Clone(n.now)), key
		if err := l.Append(t.Context(), Entry{Op: Release, Reason: "next"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		wantWhole(t, d, Check{Key: k})
		kept, words := 0, ""
		for _, r := range all(t, d) {
			if r.Op == Recover {
				words = r.Reason
				if c.lost >= 0 && r.Lost != c.lost || c.lost < 0 && (r.Lost == 0 || r.Cut == "") {
					t.Errorf("%s: %d bytes were cut off, want %d: %q", name, r.Lost, c.lost, r.Cut)
				}
			}
			if len(r.Reason) == 1 {
				kept++
			}
		}
		if kept != c.kept || (words == "") != (c.words == "") || !strings.Contains(words, c.words) {
			t.Errorf("%s: %d records are kept, and %q is said; want %d, %q", name, kept, words, c.kept, c.words)
		}
	}
}

// forge adds a record that follows the last one, by someone who has not the key.
func forge(b []byte) []byte {
	last, err := unseal(b[bytes.LastIndexByte(b[:len(b)-1], '\n')+1 : len(b)-1])
	if err != nil {
		panic(err)
	}
	a := secret.NewArena()
	defer a.Close()
	v, err := copied(a, bytes.Repeat([]byte{1}, keyLen))
	if err != nil {
		panic(err)
	}
	k, err := newRatchet(a, 0, v)
	if err != nil {
		panic(err)
	}
	r := Record{Seq: last.Seq + 1, Prev: last.hash, Batch: last.Batch + 1, Item: 1, Of: 1, Op: Release, Reason: "x"}
	b, _, err = seal(b, &r, k)
	if err != nil {
		panic(err)
	}
	return b
}

// TestOldKeyAfterACrash: the crash came between the new key and the end of the old one.
func TestOldKeyAfterACrash(t *testing.T) {
	d := newMemDisk(1)
	story(t, d, 0, 2)
	was := bytes.Clone(d.names["audit.log.key"].now)
	story(t, d, 2, 1)
	for i, b := range was { // each batch has the other slot
		if n := d.names["audit.log.key"].now; n[i] == 0 {
			n[i] = b
		}
	}
	if n := bytes.Count(d.names["audit.log.key"].now, []byte(slotMagic)); n != 2 {
		t.Fatalf("%d keys: this proves nothing", n)
	}
	later := first(t, d)
	if wantOneKey(t, d); later.Batch != 3 {
		t.Errorf("the key is of batch %d, want 3", later.Batch)
	}
}
