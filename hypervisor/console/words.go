// SPDX-License-Identifier: Apache-2.0

package console

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
	wordsKept  = 3                      // lines kept for an error's text
	wordsBurst = 100                    // lines passed on at once
	wordsEvery = 100 * time.Millisecond // and one more each
	wordsLine  = 4 << 10                // bytes read as one line
)

// Words is what a VMM says on its standard error: passed on line by line, fit for
// a log and not faster than a log likes (a guest can make a VMM complain), and
// the last lines kept.
type Words struct {
	from   *os.File
	to     *sink
	notice func(line string) // nil: nobody looks
	done   chan struct{}

	mu   sync.Mutex // guards what follows
	last []string
	pace pace
}

// Listen begins to read, and passes on to the log. The file is its own from here
// on. Of says whose words they are, for when some are lost: "QEMU's messages".
func Listen(from *os.File, log io.Writer, of string) *Words {
	return ListenFor(from, log, of, nil)
}

// ListenFor is Listen, and notice is called with each line, fit for a log: also with
// those that the log is spared, and when its reader stands still. A nil log: nobody
// hears them.
func ListenFor(from *os.File, log io.Writer, of string, notice func(line string)) *Words {
	if log == nil {
		log = io.Discard
	}
	w := &Words{from: from, to: newSink(log, of), notice: notice, done: make(chan struct{}), pace: newPace(time.Now())}
	go w.read()
	return w
}

func (w *Words) read() {
	defer close(w.done)
	r := bufio.NewReaderSize(w.from, wordsLine)
	cut := false // within a line whose beginning was passed on
	for {
		b, err := r.ReadSlice('\n')
		if !cut {
			w.Line(string(b))
		}
		cut = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !cut {
			return
		}
	}
}

// Line passes one line on. A driver uses it for words of its own, too.
func (w *Words) Line(text string) {
	text = OneLine(text)
	if text == "" {
		return
	}
	if w.notice != nil {
		w.notice(text)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.last) == wordsKept {
		w.last = append(w.last[:0], w.last[1:]...)
	}
	w.last = append(w.last, text)
	pass, held := w.pace.next(time.Now())
	if held > 0 {
		text = fmt.Sprintf("(%d lines left out) %s", held, text)
	}
	if pass {
		w.to.put([]byte(text + "\n"))
	}
}

// All is the last lines as one, or nothing.
func (w *Words) All() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.last, "; ")
}

// Last is the last line, or nothing.
func (w *Words) Last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.last) == 0 {
		return ""
	}
	return w.last[len(w.last)-1]
}

// Finish returns when the last words were read; the VMM is gone then. It waits no
// longer than that for whoever else holds the pipe.
func (w *Words) Finish(patience time.Duration) {
	WaitFor(w.done, patience)
	_ = w.from.Close()
	<-w.done
	w.to.close(patience)
}

// pace lets a burst through and then one line at a time.
type pace struct {
	tokens int
	at     time.Time
	held   int
}

func newPace(now time.Time) pace { return pace{tokens: wordsBurst, at: now} }

// next says whether a line may pass now, and how many before it did not.
func (p *pace) next(now time.Time) (pass bool, held int) {
	if n := int(now.Sub(p.at) / wordsEvery); n > 0 {
		p.tokens = min(wordsBurst, p.tokens+n)
		p.at = p.at.Add(time.Duration(n) * wordsEvery)
	}
	if p.tokens == 0 {
		p.held++
		return false, 0
	}
	p.tokens--
	held, p.held = p.held, 0
	return true, held
}

// WaitFor waits for a channel to be closed, but not for ever.
func WaitFor(done <-chan struct{}, patience time.Duration) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
