// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// nextSuffix is that of a file that is still being made.
const nextSuffix = ".next"

// append writes one batch, makes it durable, and replaces the key.
func (s *session) append(records []Record) error {
	k := s.keys
	if s.of > 0 { // a batch was taken on
		if err := s.turnOn(); err != nil {
			return err
		}
	}
	mend := s.lost > 0 || s.items < s.of
	fresh := s.cur == nil || k.end >= s.l.o.MaxSize && !mend
	switch {
	case mend:
		records = slices.Insert(records, 0, s.recovery())
	case fresh:
		records = slices.Insert(records, 0, Record{Op: Begin, Log: k.log()})
	}
	if fresh {
		if s.of > 0 { // a new file continues what the key's file knows, and nothing else
			if err := s.writeKeys(); err != nil {
				return err
			}
		}
		k.start, k.end = k.head.Seq+1, 0
	}
	text, err := s.seal(records)
	if err != nil {
		return err
	}
	if fresh {
		err = s.newFile(text)
	} else {
		err = s.extend(text, k.end-int64(len(text)))
	}
	if err != nil {
		return err
	}
	if err := s.turnOn(); err != nil {
		return err
	}
	return s.writeKeys()
}

// turnOn replaces the key by the next batch's.
func (s *session) turnOn() error {
	n, err := s.keys.ratchet.next(s.arena)
	if err != nil {
		return err
	}
	s.keys.ratchet.close()
	s.keys.ratchet = *n
	return nil
}

// recovery says what a crash had left, which nobody was told to be durable.
func (s *session) recovery() Record {
	r := Record{Op: Recover, Lost: s.lost, Cut: s.cut, Reason: "a write was cut short"}
	if s.items < s.of {
		r.Reason = fmt.Sprintf("a write was cut short: of the last batch %d of %d records are here, and none of its values was handed out", s.items, s.of)
	}
	return r
}

// seal numbers and chains the records of a batch, and moves the end.
func (s *session) seal(records []Record) ([]byte, error) {
	k := s.keys
	text := make([]byte, 0, 800*len(records)) // a usual line has some 700
	begin := k.end
	now := s.l.o.now().UTC()
	for i := range records {
		r := &records[i]
		r.Seq, r.Prev, r.Time = k.head.Seq+1, k.head.Hash, now
		r.Boot, r.Host = clip(s.l.o.Boot), clip(s.l.o.Host)
		r.Batch, r.Item, r.Of = k.batch, i+1, len(records)
		at := len(text)
		line, hash, err := seal(text, r, &k.ratchet)
		if err != nil {
			return nil, err
		}
		text = line
		k.head = Head{r.Seq, hash}
		k.last, k.end = begin+int64(at), begin+int64(len(text))
	}
	return text, nil
}

// extend writes at the log's end, over what a crash had left there. If that fails,
// what was there before is there again, or what a crash leaves.
func (s *session) extend(text []byte, at int64) error {
	_, err := s.cur.WriteAt(text, at)
	if err == nil && s.size > at+int64(len(text)) {
		err = s.cur.Truncate(at + int64(len(text)))
	}
	if err == nil {
		err = s.cur.Sync()
	}
	if err != nil {
		// A file with a part of a record in it is whole again for the next one, too.
		return errors.Join(err, s.cur.Truncate(s.size))
	}
	return nil
}

// newFile makes the log's next file whole before it takes the log's name. The full
// one has its number first.
func (s *session) newFile(text []byte) error {
	d, name := s.l.d, s.l.name
	next := name + nextSuffix
	f, err := d.Open(next, true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(0), writeAll(f, text), f.Sync()); err != nil {
		return errors.Join(err, d.Remove(next))
	}
	if s.cur != nil {
		if err := s.number(); err != nil {
			return err
		}
	}
	if err := d.Rename(next, name); err != nil {
		return err
	}
	return d.Sync()
}

func writeAll(f file, text []byte) error {
	_, err := f.WriteAt(text, 0)
	return err
}

// number gives the full file a second name, unless a crash came after that.
func (s *session) number() error {
	d := s.l.d
	names, err := d.Names()
	if err != nil {
		return err
	}
	full := numbered(names, s.l.name)
	n := 1
	if len(full) > 0 {
		newest := full[len(full)-1]
		f, err := d.Read(newest)
		if err != nil {
			return err
		}
		same := f.Same(s.cur)
		_ = f.Close() // only looked at
		if same {
			return nil
		}
		n = number(newest, s.l.name) + 1
	}
	if err := d.Link(s.l.name, s.l.name+"."+strconv.Itoa(n)); err != nil {
		return err
	}
	return d.Sync()
}

// writeKeys makes the new key durable and then erases the old one.
func (s *session) writeKeys() error {
	other := slotStep - s.slot
	if err := s.keys.writeSlot(s.lock, other); err != nil {
		return fmt.Errorf("its key: %w", err)
	}
	if err := eraseSlot(s.lock, s.slot); err != nil {
		return fmt.Errorf("its key: %w", err)
	}
	s.slot = other
	return nil
}

// numbered are the log's full files, oldest first.
func numbered(names []string, name string) []string {
	full := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return number(n, name) == 0 })
	slices.SortFunc(full, func(a, b string) int { return number(a, name) - number(b, name) })
	return full
}

// number is N of NAME.N, 0 for any other name.
func number(file, name string) int {
	digits, ok := strings.CutPrefix(file, name+".")
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || strconv.Itoa(n) != digits {
		return 0
	}
	return n
}
