// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// sinkMax is how much a slow reader may be behind, in bytes.
const sinkMax = 256 << 10

// sink writes to a writer that may be slow or blocked for ever, and never makes
// its callers wait: what does not fit is dropped, and the writer is told how
// much. A VM must not stand still because somebody stopped a terminal.
type sink struct {
	w    io.Writer
	what string // of what bytes were lost: "console output"

	mu     sync.Mutex // guards what follows
	wake   *sync.Cond
	buf    []byte
	lost   int
	closed bool

	done chan struct{}
}

// newSink starts the writing. A nil writer discards.
func newSink(w io.Writer, what string) *sink {
	if w == nil {
		w = io.Discard
	}
	s := &sink{w: w, what: what, done: make(chan struct{})}
	s.wake = sync.NewCond(&s.mu)
	go s.run()
	return s
}

func (s *sink) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(b) == 0 {
		return
	}
	if s.lost > 0 || len(s.buf)+len(b) > sinkMax {
		s.lost += len(b)
	} else {
		s.buf = append(s.buf, b...)
	}
	s.wake.Signal()
}

// take waits for something to write. It returns nil at the end.
func (s *sink) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.buf) == 0 && s.lost == 0 && !s.closed {
		s.wake.Wait()
	}
	out := s.buf
	if s.lost > 0 {
		out = fmt.Appendf(out, "\r\n[%d bytes of %s lost: the reader is too slow]\r\n", s.lost, s.what)
	}
	s.buf, s.lost = nil, 0
	return out
}

func (s *sink) run() {
	defer close(s.done)
	for {
		b := s.take()
		if b == nil {
			return
		}
		if _, err := s.w.Write(b); err != nil {
			s.w = io.Discard // nobody reads any more; only this goroutine uses it
		}
	}
}

// close ends the sink once all is written, or after the time given: a writer
// that is blocked then keeps its goroutine until it returns.
func (s *sink) close(patience time.Duration) {
	s.mu.Lock()
	s.closed = true
	s.wake.Signal()
	s.mu.Unlock()
	WaitFor(s.done, patience)
}
