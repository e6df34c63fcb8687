// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"time"

	"github.com/vmcred/vmcred/secret"
)

// recordAt reads the record whose line begins at off, and where that line ends. It
// is nil if there is no whole one.
func recordAt(f file, off int64) (*sealed, int64, error) {
	line, err := lineAt(f, off)
	if err != nil || line == nil {
		return nil, 0, err
	}
	s, err := unseal(line)
	if err != nil {
		return nil, 0, nil
	}
	return &s, off + int64(len(line)) + 1, nil
}

// lineAt reads a line; nil if it has no end within maxLine.
func lineAt(f file, off int64) ([]byte, error) {
	for size := 1 << 10; ; size *= 4 {
		b := make([]byte, min(size, maxLine))
		n, err := readFull(f, b, off)
		if err != nil {
			return nil, err
		}
		if i := bytes.IndexByte(b[:n], '\n'); i >= 0 {
			return b[:i], nil
		}
		if n < len(b) || len(b) == maxLine {
			return nil, nil
		}
	}
}

// readFull reads as much as there is.
func readFull(f file, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// Reader reads a log while others may write it.
type Reader struct {
	d    disk
	name string
}

// NewReader reads the log called name in a directory that is open.
func NewReader(dir *os.File, name string) *Reader { return &Reader{osDisk{dir}, name} }

// Line is one line of a log.
type Line struct {
	File   string // NAME, or NAME.N
	Number int    // 1, 2, … in its file
	Record Record
	Hash   Hash
	Err    error // nil, ErrNoRecord, or ErrEdited: Record is then what it says now
	Part   bool  // the file ends before the line does: it is being written, or a crash cut it

	mac  secret.Digest
	body []byte
}

// Lines are all lines of all files, oldest first, up to the end of now. It holds one
// line at a time. An error is the system's, and ends it; if there is no log it is
// fs.ErrNotExist.
func (r *Reader) Lines() iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		// The newest is opened first: what becomes of its name then is no matter.
		newest, err := r.d.Read(r.name)
		if err != nil {
			yield(Line{}, err)
			return
		}
		defer newest.Close()
		full, err := r.full(newest)
		if err != nil {
			yield(Line{}, err)
			return
		}
		for _, name := range full {
			f, err := r.d.Read(name)
			if err != nil {
				yield(Line{}, err)
				return
			}
			more := readLines(&lines{f: f, name: name}, true, yield)
			_ = f.Close() // only read from
			if !more {
				return
			}
		}
		readLines(&lines{f: newest, name: r.name}, true, yield)
	}
}

// full are the full files, oldest first, without the one that is f.
func (r *Reader) full(f file) ([]string, error) {
	names, err := r.d.Names()
	if err != nil {
		return nil, err
	}
	full := numbered(names, r.name)
	if len(full) == 0 {
		return nil, nil
	}
	last, err := r.d.Read(full[len(full)-1])
	if err != nil {
		return nil, err
	}
	defer last.Close()
	if last.Same(f) {
		full = full[:len(full)-1]
	}
	return full, nil
}

// readLines yields what is there, the part of a line at the end too if wanted, and
// reports whether more is wanted.
func readLines(l *lines, part bool, yield func(Line, error) bool) bool {
	for {
		line, ok, err := l.next()
		if err != nil {
			yield(Line{}, err)
			return false
		}
		if !ok && (!part || len(l.buf) == 0) {
			return true
		}
		if !ok {
			return yield(Line{File: l.name, Number: l.n + 1, Err: ErrNoRecord, Part: true}, nil)
		}
		if !yield(line, nil) {
			return false
		}
	}
}

// lines reads a file line by line; at its end it can be asked again.
type lines struct {
	f    file
	name string
	n    int    // lines that were read
	off  int64  // where buf ends in the file
	buf  []byte // what was read and not yet used
	long bool   // in a line that is longer than a record can be
}

// next is the next whole line, if there is one by now.
func (l *lines) next() (Line, bool, error) {
	for {
		if i := bytes.IndexByte(l.buf, '\n'); i >= 0 {
			text := l.buf[:i]
			l.buf = l.buf[i+1:]
			l.n++
			line := l.line(text)
			l.long = false
			return line, true, nil
		}
		if len(l.buf) >= maxLine {
			l.long, l.buf = true, l.buf[:0]
		}
		more := make([]byte, len(l.buf)+4*maxLine)
		kept := copy(more, l.buf)
		n, err := readFull(l.f, more[kept:], l.off)
		l.buf, l.off = more[:kept+n], l.off+int64(n)
		if err != nil || n == 0 {
			return Line{}, false, err
		}
	}
}

func (l *lines) line(text []byte) Line {
	line := Line{File: l.name, Number: l.n, Err: ErrNoRecord}
	if l.long {
		return line
	}
	s, err := unseal(text)
	line.Record, line.Hash, line.Err, line.mac, line.body = s.Record, s.hash, err, s.mac, s.body
	return line
}

// Follow yields what Lines does, and then what is added, until the context ends. It
// looks again at every tick.
func (r *Reader) Follow(ctx context.Context, tick <-chan time.Time) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		var seq uint64
		// A file that is replaced between two looks is read on from its number.
		fresh := func(line Line, err error) bool {
			if err == nil && line.Err == nil {
				if line.Record.Seq <= seq {
					return true
				}
				seq = line.Record.Seq
			}
			return yield(line, err)
		}
		for line, err := range r.Lines() {
			if line.Part {
				break
			}
			if !fresh(line, err) || err != nil {
				return
			}
		}
		r.follow(ctx, tick, fresh)
	}
}

// follow goes on in the newest file, and in the one that takes its place.
func (r *Reader) follow(ctx context.Context, tick <-chan time.Time, yield func(Line, error) bool) {
	f, err := r.d.Read(r.name)
	if err != nil {
		yield(Line{}, err)
		return
	}
	l := &lines{f: f, name: r.name}
	defer func() { _ = l.f.Close() }()
	for {
		now, err := r.d.Read(r.name)
		if err != nil {
			yield(Line{}, err)
			return
		}
		replaced := !now.Same(l.f)
		if !readLines(l, false, yield) { // to its end, also after it was replaced
			_ = now.Close()
			return
		}
		if replaced {
			_ = l.f.Close()
			l = &lines{f: now, name: r.name}
			continue
		}
		_ = now.Close()
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}
