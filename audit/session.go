// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"

	"github.com/vmcred/vmcred/secret"
)

// session is a log while it is locked.
type session struct {
	l      *Log
	lock   file // the key's file
	slot   int64
	arena  *secret.Arena
	keys   *keys // ahead of the slot by what is adopted, and then by what is appended
	digest *secret.Key
	cur    file // the log, nil if it is to be made
	size   int64
	lost   int64  // bytes after the last whole record
	cut    string // the first of them
	of     int    // of the last batch, and how many of it are there
	items  int
}

// begin locks the log and finds its end.
func (l *Log) begin(ctx context.Context) (*session, error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, l.late(ctx)
	}
	s := &session{l: l, arena: secret.NewSmallArena()}
	if err := s.open(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) open(ctx context.Context) error {
	l, name := s.l, s.l.name+keySuffix
	f, err := l.d.Lock(ctx, name, false)
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.mayBegin(); err != nil {
			return err
		}
		f, err = l.d.Lock(ctx, name, true)
	}
	var locked *lockedError
	switch {
	case errors.As(err, &locked):
		return &Error{Log: l.path(), What: "it is locked", Err: err, Cure: "look at that process: does it hang?"}
	case err != nil:
		return l.failed("cannot be opened", err)
	}
	s.lock = f
	if err := s.readKeys(); err != nil {
		return l.failed("its key cannot be read or made", err)
	}
	err = s.keys.digestKey(s.arena, &s.digest)
	if err == nil {
		err = s.find()
	}
	if err != nil {
		return l.failed("cannot be read", err)
	}
	return nil
}

func (k *keys) digestKey(a *secret.Arena, to **secret.Key) error {
	return k.digest.Use(func(b []byte) error {
		var err error
		*to, err = a.Key(b)
		return err
	})
}

func (s *session) close() {
	_ = s.arena.Close() // all keys
	for _, f := range []file{s.cur, s.lock} {
		if f != nil {
			_ = f.Close() // all that matters was synced
		}
	}
	<-s.l.turn
}

// mayBegin refuses to make a new key for a log that has had one.
func (l *Log) mayBegin() error {
	names, err := l.d.Names()
	if err != nil {
		return l.failed("cannot be made", err)
	}
	if full := numbered(names, l.name); len(full) > 0 {
		return l.wrong(beginAnew(l.path()), "its key %s is missing, and %s is there", l.name+keySuffix, full[len(full)-1])
	}
	f, err := l.d.Read(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return l.failed("cannot be read", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return l.failed("cannot be read", err)
	}
	if size > 0 {
		return l.wrong(beginAnew(l.path()), "its key %s is missing: nothing can be added to it", l.name+keySuffix)
	}
	return nil
}

// readKeys reads the key of now, and makes the first one.
func (s *session) readKeys() error {
	k, off, older, err := readKeys(s.arena, s.lock)
	if err != nil {
		return err
	}
	s.keys, s.slot = k, off
	if k != nil {
		if older {
			return eraseSlot(s.lock, slotStep-off)
		}
		return nil
	}
	if err := s.l.mayBegin(); err != nil {
		return err
	}
	if s.keys, err = newKeys(s.arena); err != nil {
		return err
	}
	s.slot = 0
	if err := s.lock.Truncate(slotStep + slotSize); err != nil {
		return err
	}
	if err := s.keys.writeSlot(s.lock, s.slot); err != nil {
		return err
	}
	return s.l.d.Sync()
}

// find goes to the end of the log. Beyond what the key's file knows there can be
// more after a crash: whole records are taken on if they carry the keys' MACs, and
// what comes after them is to be cut.
func (s *session) find() error {
	l := s.l
	f, err := l.d.Open(l.name, false)
	if errors.Is(err, fs.ErrNotExist) {
		if s.keys.head.Seq == 0 {
			return nil
		}
		return l.wrong(beginAnew(l.path()), "it is gone: record %d was written to it", s.keys.head.Seq)
	}
	if err != nil {
		return err
	}
	s.cur = f
	if s.size, err = f.Size(); err != nil {
		return err
	}
	if s.size == 0 && s.keys.head.Seq == 0 {
		s.cur = nil
		return f.Close()
	}
	from, err := s.known()
	if err != nil {
		return err
	}
	return s.adopt(from)
}

// known checks that the log still ends, or goes on, where the key's file says, and
// returns where that is.
func (s *session) known() (int64, error) {
	k, l := s.keys, s.l
	first, _, err := recordAt(s.cur, 0)
	switch {
	case err != nil:
		return 0, err
	case first == nil:
		return 0, l.wrong(beginAnew(l.path()), "its first line is no whole record")
	case first.Seq == k.head.Seq+1 && first.Prev == k.head.Hash:
		k.start, k.last, k.end = first.Seq, 0, 0
		return 0, nil // a new file, which the key's file does not know yet
	case first.Seq != k.start:
		return 0, l.wrong(beginAnew(l.path()), "it was replaced: it begins with record %d, not %d", first.Seq, k.start)
	case s.size < k.end:
		return 0, l.wrong(beginAnew(l.path()), "it was cut: record %d is missing at its end", k.head.Seq)
	}
	last, end, err := recordAt(s.cur, k.last)
	switch {
	case err != nil:
		return 0, err
	case last == nil || end != k.end || last.Seq != k.head.Seq || last.hash != k.head.Hash:
		return 0, l.wrong(beginAnew(l.path()), "record %d is not the one that was written", k.head.Seq)
	}
	return k.end, nil
}

// adopt takes on the whole records from an offset to the end.
func (s *session) adopt(off int64) error {
	s.items, s.of = 0, 0 // the key's file is written after whole batches only
	for {
		rec, end, err := recordAt(s.cur, off)
		if err != nil {
			return err
		}
		if rec == nil {
			break
		}
		ok, err := s.take(rec)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		s.keys.head, s.keys.last, s.keys.end = Head{rec.Seq, rec.hash}, off, end
		off = end
	}
	if off == 0 {
		return s.l.wrong(beginAnew(s.l.path()), "it was replaced: its first record is not of this key")
	}
	s.lost = s.size - off
	b := make([]byte, min(s.lost, maxText/2))
	n, err := readFull(s.cur, b, off)
	s.cut = string(bytes.ToValidUTF8(b[:n], []byte("\uFFFD")))
	return err
}

// take turns the key on to the record's batch, and reports whether the record is the
// next one. A batch that a crash had cut is followed by a Recover.
func (s *session) take(r *sealed) (bool, error) {
	k := s.keys
	if r.Seq != k.head.Seq+1 || r.Prev != k.head.Hash {
		return false, nil
	}
	next := r.Batch == k.batch+1
	switch {
	case s.items == s.of && r.Item == 1 && (s.of == 0 && r.Batch == k.batch || s.of > 0 && next):
	case s.items < s.of && r.Batch == k.batch && r.Item == s.items+1 && r.Of == s.of:
	case s.items < s.of && next && r.Item == 1 && r.Op == Recover:
	default:
		return false, nil
	}
	key := &k.ratchet
	if next && s.of > 0 {
		var err error
		if key, err = key.next(s.arena); err != nil {
			return false, err
		}
	}
	if key.mac(r.body) != r.mac {
		if key != &k.ratchet {
			key.close()
		}
		return false, nil
	}
	if key != &k.ratchet {
		k.ratchet.close()
		k.ratchet = *key
	}
	s.items, s.of = r.Item, r.Of
	return true, nil
}
