// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/vmcred/vmcred/secret"
)

// Known is a head that is known from elsewhere.
type Known struct {
	Head
	From string // where from, for messages
}

// Check is what a log is compared with beside itself.
type Check struct {
	Key   *Key    // nil: MACs are not verified
	Heads []Known // the log must hold these records
	First uint64  // the record the log may begin with; 0 is 1
}

// Fault is one thing that is wrong with a log.
type Fault struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Seq  uint64 `json:"record,omitempty"` // the record it is about, 0 if that cannot be told
	What string `json:"what"`
}

// String returns "FILE:LINE: what is wrong".
func (f Fault) String() string {
	switch {
	case f.File == "":
		return f.What
	case f.Line == 0:
		return f.File + ": " + f.What
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What)
}

// maxFaults is how many a report names: after the first ones the rest follows.
const maxFaults = 20

// Report is what a verification found.
type Report struct {
	Records    uint64    `json:"records"`
	Files      int       `json:"files"`
	First      uint64    `json:"first"` // the number of the first record
	Last       Head      `json:"-"`
	From       time.Time `json:"from"`
	To         time.Time `json:"to"`
	Keyed      uint64    `json:"keyed"`     // records whose MAC is that of the key given
	FirstKeyed uint64    `json:"-"`         // the first of them
	Faults     []Fault   `json:"faults"`    // none: the log is whole
	More       bool      `json:"more"`      // there are more faults than these
	Unwritten  bool      `json:"unwritten"` // it ends in a part of a batch: one is being written, or a crash cut it
}

// Verify reads the whole log and says which records are not what was written. An
// error is about reading; if there is no log it is fs.ErrNotExist.
func (r *Reader) Verify(ctx context.Context, c Check) (*Report, error) {
	v := &verifier{Report: &Report{Faults: []Fault{}}, c: c, found: make([]bool, len(c.Heads)), want: max(c.First, 1)}
	if c.Key != nil {
		v.arena = secret.NewSmallArena()
		defer func() { _ = v.arena.Close() }()
		value, err := copiedValue(v.arena, c.Key)
		if err != nil {
			return nil, err
		}
		if v.key, err = newRatchet(v.arena, c.Key.Batch, value); err != nil {
			return nil, err
		}
	}
	for line, err := range r.Lines() {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = v.line(&line)
		}
		if err != nil {
			return nil, err
		}
	}
	v.end()
	return v.Report, nil
}

// Position is the head that the key's file beside the log knows; its number is 0 if
// nothing is written yet. fs.ErrNotExist: there is no such file.
func (r *Reader) Position() (Head, error) {
	f, err := r.d.Read(r.name + keySuffix)
	if err != nil {
		return Head{}, err
	}
	defer f.Close()
	a := secret.NewSmallArena()
	defer a.Close()
	k, _, _, err := readKeys(a, f)
	if err != nil {
		return Head{}, err
	}
	if k == nil { // a writer may be between its two slots
		if k, _, _, err = readKeys(a, f); err != nil {
			return Head{}, err
		}
	}
	if k == nil {
		return Head{}, &fs.PathError{Op: "read", Path: r.name + keySuffix, Err: errors.New("it holds no whole key")}
	}
	return k.head, nil
}

type verifier struct {
	*Report
	c     Check
	key   *ratchet
	arena *secret.Arena // where the key is
	found []bool
	want  uint64 // the next record's number
	prev  Line   // the record before
	file  string
	batch uint64 // of the record before
	item  int
	of    int
}

func (v *verifier) fault(l *Line, seq uint64, format string, args ...any) {
	if len(v.Faults) == maxFaults {
		v.More = true
		return
	}
	v.Faults = append(v.Faults, Fault{File: l.File, Line: l.Number, Seq: seq, What: fmt.Sprintf(format, args...)})
}

func (v *verifier) line(l *Line) error {
	if l.File != v.file {
		v.file = l.File
		v.Files++
	}
	switch {
	case l.Part:
		v.Unwritten = true
		return nil
	case errors.Is(l.Err, ErrNoRecord):
		v.fault(l, 0, "%v; record %d should be here", l.Err, v.want)
		v.want++
		v.prev = Line{} // the next one cannot be compared with it
		v.item, v.of = 0, 0
		return nil
	case l.Err != nil:
		l.Record.Seq = v.want // its place is believed rather than its number
		v.fault(l, v.want, "record %d: %v", v.want, l.Err)
		v.item, v.of = 0, 0
	default:
		v.chain(l)
		v.batches(l)
	}
	if err := v.mac(l); err != nil {
		return err
	}
	v.heads(l)
	if v.Records == 0 {
		v.First, v.From = l.Record.Seq, l.Record.Time
	}
	v.Records++
	v.Last, v.To = Head{l.Record.Seq, l.Hash}, l.Record.Time
	v.prev, v.want = *l, l.Record.Seq+1
	return nil
}

// chain compares a record's number, and what it says of the one before.
func (v *verifier) chain(l *Line) {
	seq := l.Record.Seq
	switch {
	case seq > v.want && v.Records == 0 && v.prev.Hash == (Hash{}):
		v.fault(l, v.want, "the log begins with record %d: %s missing", seq, span(v.want, seq-1))
	case seq > v.want:
		v.fault(l, v.want, "record %d stands where record %d should: %s missing here", seq, v.want, span(v.want, seq-1))
	case seq < v.want:
		v.fault(l, seq, "record %d stands where record %d should: it is here twice, or was moved", seq, v.want)
	case v.prev.Err == nil && v.prev.Record.Seq+1 == seq && v.prev.Hash != l.Record.Prev:
		v.fault(&v.prev, seq-1, "record %d is not the one that record %d was written after: it was replaced", seq-1, seq)
	case seq == 1 && l.Record.Prev != Hash{}:
		v.fault(l, 1, "record 1 was written after another one: what came before is missing")
	}
}

func span(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is", from)
	}
	return fmt.Sprintf("records %d to %d are", from, to)
}

// batches: what a crash had cut is followed by a Recover.
func (v *verifier) batches(l *Line) {
	r := &l.Record
	whole := v.prev.Record.Seq+1 == r.Seq && v.of > 0
	switch {
	case !whole:
	case v.item < v.of && r.Batch == v.batch && r.Item == v.item+1 && r.Of == v.of:
	case v.item < v.of && r.Op == Recover && r.Item == 1 && r.Batch == v.batch+1:
	case v.item == v.of && r.Item == 1 && r.Batch == v.batch+1:
	default:
		v.fault(l, r.Seq, "record %d is record %d of %d in batch %d, which cannot follow %d of %d in batch %d", r.Seq, r.Item, r.Of, r.Batch, v.item, v.of, v.batch)
	}
	v.batch, v.item, v.of = r.Batch, r.Item, r.Of
}

// maxTurns is how many batches may be missing in one place before the key is turned
// on to one that a line only claims.
const maxTurns = 1 << 20

func (v *verifier) mac(l *Line) error {
	r := &l.Record
	if r.Op == Begin && v.c.Key != nil && r.Log != v.c.Key.Log && l.Err == nil {
		v.fault(l, r.Seq, "the log's number is %s, and the key is of log %s", r.Log, v.c.Key.Log)
	}
	if v.key == nil || r.Batch < v.c.Key.Batch || l.Err != nil {
		return nil
	}
	if r.Batch < v.key.batch || r.Batch-v.key.batch > maxTurns {
		v.fault(l, r.Seq, "record %d is of batch %d, and its MAC cannot be verified here", r.Seq, r.Batch)
		return nil
	}
	for v.key.batch < r.Batch {
		arena := secret.NewSmallArena() // one key's, and it goes with it
		next, err := v.key.next(arena)
		if err != nil {
			return errors.Join(err, arena.Close())
		}
		_ = v.arena.Close() // wiping cannot fail
		v.arena, v.key = arena, next
	}
	if v.key.mac(l.body) != l.mac {
		v.fault(l, r.Seq, "record %d has not the MAC that the log's key gives: it was written by someone else", r.Seq)
		return nil
	}
	if v.Keyed++; v.Keyed == 1 {
		v.FirstKeyed = r.Seq
	}
	return nil
}

func (v *verifier) heads(l *Line) {
	for i, h := range v.c.Heads {
		if h.Seq != l.Record.Seq || v.found[i] {
			continue
		}
		v.found[i] = true
		if h.Hash != l.Hash {
			v.fault(l, h.Seq, "record %d is not the one that %s knows: the log was replaced from there or from before on", h.Seq, h.From)
		}
	}
}

// end compares the log's end with what is known from elsewhere.
func (v *verifier) end() {
	at := &Line{File: v.file}
	for i, h := range v.c.Heads {
		switch {
		case v.found[i] || h.Seq == 0:
		case h.Seq >= v.want:
			v.fault(at, v.want, "%s missing at the end: %s knows record %d; the log was cut, or is an older copy", span(v.want, h.Seq), h.From, h.Seq)
		case h.Seq < v.First:
			v.fault(at, h.Seq, "record %d, which %s knows, is older than this log's first", h.Seq, h.From)
		}
	}
	if k := v.c.Key; k != nil && k.Batch > 0 && (v.Records == 0 || v.batch+1 < k.Batch) {
		v.fault(at, v.want, "the log ends with batch %d, and the key is of batch %d: its end was cut, or it is an older copy", v.batch, k.Batch)
	}
	v.Unwritten = v.Unwritten || v.item < v.of
}
