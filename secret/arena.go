// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

const (
	firstMapping = 64 << 10 // holds 200 values of usual size and their encodings
	maxMapping   = 1 << 20  // mappings double up to this; a larger value gets one of its own
	readStep     = 4 << 10  // room for a value whose size is not known yet
	align        = 16
)

// Arena holds many small values in few locked mappings. The first is made with
// the first value; more follow as needed. An Arena may be used from several
// goroutines.
type Arena struct {
	mu     sync.Mutex
	maps   []*mapping
	newMap func(n int) (*mapping, error)
	next   int // size of the next mapping in bytes
	closed bool
	weak   bool // at least one mapping is not memfd_secret
}

// NewArena returns an empty arena. It makes no system call.
func NewArena() *Arena { return &Arena{newMap: newMapping, next: firstMapping} }

// NewSmallArena is NewArena for a few keys: its first mapping is two pages.
func NewSmallArena() *Arena { return &Arena{newMap: newMapping, next: 2 * os.Getpagesize()} }

// ownArena is for one value: a single page is enough for most.
func ownArena() *Arena { return &Arena{newMap: newMapping, next: os.Getpagesize()} }

// Kind says how the pages are kept: "memfd_secret", or "mlock" if at least one
// mapping had to do without. An empty arena makes its first mapping to find out;
// "" means that it was closed or that no page can be locked.
func (a *Arena) Kind() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ""
	}
	if len(a.maps) == 0 {
		if _, err := a.grow(1); err != nil {
			return ""
		}
	}
	if a.weak {
		return "mlock"
	}
	return "memfd_secret"
}

// Close wipes every value and gives the pages back. Using a value afterwards
// returns [ErrWiped]. Pages that another goroutine uses at this moment are wiped
// when it is done with them. Closing again does nothing.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	var errs []error
	for _, m := range a.maps {
		if m.pins == 0 {
			errs = append(errs, m.unmap())
		}
	}
	a.maps = nil
	return errors.Join(errs...)
}

// Make returns a value that fill writes into a slice of n bytes in locked pages.
// The value is the first bytes of it, as many as fill returns; the rest is wiped.
func (a *Arena) Make(n int, fill func([]byte) (int, error)) (*Value, error) {
	if n < 0 {
		return nil, fmt.Errorf("a value of %d bytes", n)
	}
	s, err := a.reserve(n)
	if err != nil {
		return nil, err
	}
	defer s.unpin()
	got, err := fill(s.bytes())
	if err == nil && (got < 0 || got > n) {
		err = fmt.Errorf("%d bytes written into %d", got, n)
	}
	if err != nil {
		s.kill()
		return nil, err
	}
	s.shrink(got)
	return &Value{s: s}, nil
}

// Read reads r to its end into locked pages. More than max bytes is a
// [*TooLargeError]. r reads straight into the pages: an *os.File leaves no copy,
// other readers may keep buffers of their own.
func (a *Arena) Read(r io.Reader, max int) (*Value, error) {
	if max < 0 {
		return nil, &TooLargeError{Max: max}
	}
	s, err := a.reserve(min(readStep, max+1))
	if err != nil {
		return nil, err
	}
	defer func() { s.unpin() }() // s may be another one by then
	n, err := 0, error(nil)
	for err == nil && n <= max {
		if n == s.n {
			if s, err = a.enlarge(s, min(nextSize(r, n), max+1)); err != nil {
				break
			}
		}
		var got int
		got, err = readSome(r, s.bytes()[n:])
		n += got
	}
	switch {
	case n > max:
		err = &TooLargeError{Max: max}
	case errors.Is(err, io.EOF):
		s.shrink(n)
		return &Value{s: s}, nil
	}
	s.kill()
	return nil, err
}

// readSome reads at least one byte into p, or returns an error.
func readSome(r io.Reader, p []byte) (int, error) {
	for range 100 {
		n, err := r.Read(p)
		if n < 0 || n > len(p) {
			return 0, fmt.Errorf("a reader says it read %d bytes into %d", n, len(p))
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// nextSize returns how many bytes to make room for after the first n: all of a
// file that says its size, and one more to see its end.
func nextSize(r io.Reader, n int) int {
	f, ok := r.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return 4 * n
	}
	info, err := f.Stat()
	if err != nil || info.Size() < int64(n) || info.Size() > maxMapping {
		return 4 * n
	}
	return int(info.Size()) + 1
}

// Base64 returns v in standard base64 with padding, encoded straight into the arena.
func (a *Arena) Base64(v *Value) (*Value, error) {
	var out *Value
	err := v.Use(func(b []byte) error {
		n := base64.StdEncoding.EncodedLen(len(b))
		var err error
		out, err = a.Make(n, func(dst []byte) (int, error) {
			quietly(func() { base64.StdEncoding.Encode(dst, b) })
			return n, nil
		})
		return err
	})
	return out, err
}

// Read is [Arena.Read] for a value with an arena of its own.
func Read(r io.Reader, max int) (*Value, error) {
	return own(func(a *Arena) (*Value, error) { return a.Read(r, max) })
}

// Make is [Arena.Make] for a value with an arena of its own.
func Make(n int, fill func([]byte) (int, error)) (*Value, error) {
	return own(func(a *Arena) (*Value, error) { return a.Make(n, fill) })
}

func own(f func(*Arena) (*Value, error)) (*Value, error) {
	a := ownArena()
	v, err := f(a)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	v.s.own = true
	return v, nil
}
