// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmcred/vmcred/secret"
)

// What [Options] stand for when they are zero.
const (
	DefaultMaxSize = 64 << 20
	DefaultWait    = 10 * time.Second
)

// Options of a Log.
type Options struct {
	Host, Boot string        // this host's name, and its boot's UUID
	MaxSize    int64         // bytes; a file that has reached them is full
	Wait       time.Duration // how long Append waits for others and for the disk
	// Head, if set, is told the log's end after every batch: a copy elsewhere shows
	// later whether the log was cut. It must not call the Log.
	Head func(Head)

	now func() time.Time
}

// Log appends to a log. Several processes, and several Logs in one, may append to
// the same; a Log may be used from several goroutines, whose records then share
// one batch. It holds nothing open between two batches.
type Log struct {
	d    disk
	name string
	o    Options

	turn  chan struct{} // holds one: who has, or waits for, the lock on the key's file
	mu    sync.Mutex    // guards what follows
	queue []*request
	busy  bool // somebody serves the queue
}

type request struct {
	entries  []Entry
	done     chan error // holds one
	answered bool       // who serves knows
}

// answer tells a request once: its own error comes before that of all.
func (r *request) answer(err error) {
	if !r.answered {
		r.answered = true
		r.done <- err
	}
}

// New is the log called name in a directory that is open; dir's own name is its path,
// for messages. The directory must be one that only this user can write. The log is
// made by the first Append or Key.
func New(dir *os.File, name string, o Options) *Log { return newLog(osDisk{dir}, name, o) }

func newLog(d disk, name string, o Options) *Log {
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	if o.now == nil {
		o.now = time.Now
	}
	return &Log{d: d, name: name, o: o, turn: make(chan struct{}, 1)}
}

func (l *Log) path() string { return filepath.Join(l.d.Path(), l.name) }

// Append puts the entries on record, all of them or none, and returns when they are
// durable: not before that may a value leave. On an error, nothing may; records of
// it may be there all the same, if it is the wait that ended. The error is an
// *[Error], or is about an entry.
func (l *Log) Append(ctx context.Context, entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.o.Wait)
	defer cancel()
	r := &request{entries: entries, done: make(chan error, 1)}
	l.mu.Lock()
	l.queue = append(l.queue, r)
	if !l.busy {
		l.busy = true
		go l.serve()
	}
	l.mu.Unlock()
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.queue = slices.DeleteFunc(l.queue, func(q *request) bool { return q == r })
	l.mu.Unlock()
	select {
	case err := <-r.done: // just now
		return err
	default:
	}
	return l.late(ctx)
}

func (l *Log) late(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	return &Error{Log: l.path(), What: fmt.Sprintf("no record was durable within %s", l.o.Wait), Err: ctx.Err(), Cure: "is its disk slow, or does something keep it locked?"}
}

// serve commits what waits until nothing does: all that came while one batch was on
// its way to the disk share the next.
func (l *Log) serve() {
	for {
		l.mu.Lock()
		all := l.queue
		l.queue = nil
		l.busy = len(all) > 0
		l.mu.Unlock()
		if len(all) == 0 {
			return
		}
		head, err := l.commit(all)
		if err == nil && l.o.Head != nil && head.Seq > 0 {
			l.o.Head(head)
		}
		for _, r := range all {
			r.answer(err)
		}
	}
}

func (l *Log) commit(all []*request) (Head, error) {
	// A little less than who asks waits, who is then told what it waited for.
	ctx, cancel := context.WithTimeout(context.Background(), l.o.Wait*9/10)
	defer cancel()
	s, err := l.begin(ctx)
	if err != nil {
		return Head{}, err
	}
	defer s.close()
	var records []Record
	for _, r := range all {
		more, err := s.records(r.entries)
		if err != nil {
			r.answer(err)
			continue
		}
		records = append(records, more...)
	}
	if len(records) == 0 {
		return Head{}, nil
	}
	if err := s.append(records); err != nil {
		return Head{}, l.failed("cannot be written", err)
	}
	return s.keys.head, nil
}

// records makes records of a request's entries, with the digests.
func (s *session) records(entries []Entry) ([]Record, error) {
	out := make([]Record, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		r := e.record()
		if e.Value != nil {
			d := e.Value.Digest(s.digest, e.context())
			if d.IsZero() {
				return nil, fmt.Errorf("%s: %w", e.context(), secret.ErrWiped)
			}
			r.Digest = d.String()
		}
		out = append(out, r)
	}
	return out, nil
}
