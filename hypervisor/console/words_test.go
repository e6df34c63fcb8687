// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// stuck is a terminal that somebody stopped.
type stuck struct {
	once sync.Once
	full chan struct{}
	free chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.full) })
	<-s.free
	return len(b), nil
}

// TestSink: what a slow reader loses, it is told.
func TestSink(t *testing.T) {
	w := &stuck{full: make(chan struct{}), free: make(chan struct{})}
	var got buffer
	s := newSink(io.MultiWriter(&got, w), "noise")
	s.put([]byte("first "))
	<-w.full
	s.put(make([]byte, sinkMax))
	s.put([]byte("lost"))
	s.put([]byte("lost too"))
	close(w.free)
	s.close(time.Minute)
	s.put([]byte("after the end"))
	want := "first " + string(make([]byte, sinkMax)) + "\r\n[12 bytes of noise lost: the reader is too slow]\r\n"
	if got.String() != want {
		t.Errorf("%d bytes, ending in %q", len(got.String()), got.String()[max(0, len(got.String())-80):])
	}
}

func TestPace(t *testing.T) {
	now := time.Now()
	p := newPace(now)
	for i := range wordsBurst {
		if pass, _ := p.next(now); !pass {
			t.Fatalf("line %d of the burst is held", i)
		}
	}
	for range 7 {
		if pass, _ := p.next(now); pass {
			t.Fatal("more than the burst")
		}
	}
	if pass, held := p.next(now.Add(wordsEvery)); !pass || held != 7 {
		t.Errorf("%v %d", pass, held)
	}
	if pass, _ := p.next(now.Add(wordsEvery)); pass {
		t.Error("two for one")
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"  plain ":               "plain",
		"two\nlines\r\n":         "two;lines",
		"\x1b]0;title\x07x\x9b1": "?]0;title?x?1",
		"caf\u00e9 \u202egnp":    "café ?gnp",
		strings.Repeat("é", 300): strings.Repeat("é", 200) + "…",
	} {
		if got := OneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
