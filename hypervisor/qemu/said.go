// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	saidKept  = 3                      // lines kept for an error's text
	saidBurst = 100                    // lines passed on at once
	saidEvery = 100 * time.Millisecond // and one more each
	saidLine  = 4 << 10                // bytes read as one line
)

// said is what QEMU says on its standard error: passed on line by line, fit for
// a log and not faster than a log likes (a guest can make QEMU complain), and
// the last lines kept.
type said struct {
	from *os.File
	to   *sink
	done chan struct{}

	mu   sync.Mutex // guards what follows
	last []string
	pace pace
}

func listen(from *os.File, log io.Writer) *said {
	s := &said{from: from, to: newSink(log, "QEMU's messages"), done: make(chan struct{}), pace: newPace(time.Now())}
	go s.read()
	return s
}

func (s *said) read() {
	defer close(s.done)
	r := bufio.NewReaderSize(s.from, saidLine)
	cut := false // within a line whose beginning was passed on
	for {
		b, err := r.ReadSlice('\n')
		if !cut {
			s.line(string(b))
		}
		cut = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !cut {
			return
		}
	}
}

// line passes one line on. The driver uses it for words of its own, too.
func (s *said) line(text string) {
	text = oneLine(text)
	if text == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) == saidKept {
		s.last = append(s.last[:0], s.last[1:]...)
	}
	s.last = append(s.last, text)
	pass, held := s.pace.next(time.Now())
	if held > 0 {
		text = fmt.Sprintf("(%d lines left out) %s", held, text)
	}
	if pass {
		s.to.put([]byte(text + "\n"))
	}
}

// words are the last lines as one, or nothing.
func (s *said) words() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.last, "; ")
}

func (s *said) lastLine() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) == 0 {
		return ""
	}
	return s.last[len(s.last)-1]
}

// finish returns when the last words were read; QEMU is gone then. It waits no
// longer than that for whoever else holds the pipe.
func (s *said) finish(patience time.Duration) {
	waitFor(s.done, patience)
	_ = s.from.Close()
	<-s.done
	s.to.close(patience)
}

// pace lets a burst through and then one line at a time.
type pace struct {
	tokens int
	at     time.Time
	held   int
}

func newPace(now time.Time) pace { return pace{tokens: saidBurst, at: now} }

// next says whether a line may pass now, and how many before it did not.
func (p *pace) next(now time.Time) (pass bool, held int) {
	if n := int(now.Sub(p.at) / saidEvery); n > 0 {
		p.tokens = min(saidBurst, p.tokens+n)
		p.at = p.at.Add(time.Duration(n) * saidEvery)
	}
	if p.tokens == 0 {
		p.held++
		return false, 0
	}
	p.tokens--
	held, p.held = p.held, 0
	return true, held
}

// waitFor waits for a channel to be closed, but not for ever.
func waitFor(done <-chan struct{}, patience time.Duration) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
