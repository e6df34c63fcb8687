// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Search looks for needles and gathers what it finds in one report. It is safe
// for concurrent use.
type Search struct {
	needles *Needles
	meant   []Meant

	mu       sync.Mutex // guards the fields below
	findings map[findingKey]*Finding
	skips    map[skipKey]*Skip
	searched Searched
}

type findingKey struct {
	needle, form, part string
	place              Place
}

type skipKey struct{ what, why string }

// New returns a search for the needles. A finding in a place that one of meant
// covers counts as meant.
func New(n *Needles, meant ...Meant) *Search {
	return &Search{needles: n, meant: meant, findings: map[findingKey]*Finding{}, skips: map[skipKey]*Skip{}}
}

// found records one occurrence. The place's texts are redacted here.
func (s *Search) found(f *form, at int64, p Place) {
	p.Exe, p.Path, p.Detail = s.needles.redact(p.Exe), s.needles.redact(p.Path), s.needles.redact(p.Detail)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := findingKey{f.needle, f.name, f.part, p}
	if old := s.findings[key]; old != nil {
		old.Count++
		old.Offset = min(old.Offset, at)
		return
	}
	s.findings[key] = &Finding{Needle: f.needle, Form: f.name, Part: f.part, Place: p, Offset: at, Count: 1, Meant: s.isMeant(p)}
}

// isMeant names what covers a place, or is empty.
func (s *Search) isMeant(p Place) string {
	for _, m := range s.meant {
		if m.Is(p) {
			return m.Name
		}
	}
	return ""
}

// skip records what could not be searched. The example is redacted here.
func (s *Search) skip(what, why, example string) {
	example = s.needles.redact(example)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := skipKey{what, why}
	if old := s.skips[key]; old != nil {
		old.Count++
		return
	}
	s.skips[key] = &Skip{What: what, Why: why, Count: 1, Example: example}
}

// failed records an error as something not searched, unless the thing just
// went away, which is not worth a word.
func (s *Search) failed(what, example string, err error) {
	if err == nil || gone(err) {
		return
	}
	var errno syscall.Errno
	why := "cannot be read"
	if errors.As(err, &errno) {
		why = errno.Error()
	}
	s.skip(what, why, example)
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

func (s *Search) count(add func(*Searched)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add(&s.searched)
}

// Report returns what was found so far.
func (s *Search) Report() *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &Report{Findings: []Finding{}, Meant: []Finding{}, NotSearched: []Skip{}, Searched: s.searched}
	places := map[Place]bool{}
	for _, f := range s.findings {
		if f.Meant != "" {
			r.Meant = append(r.Meant, *f)
			continue
		}
		r.Findings = append(r.Findings, *f)
		places[f.Place] = true
	}
	r.Places = len(places)
	for _, k := range s.skips {
		r.NotSearched = append(r.NotSearched, *k)
	}
	slices.SortFunc(r.Findings, byPlace)
	slices.SortFunc(r.Meant, byPlace)
	slices.SortFunc(r.NotSearched, func(a, b Skip) int {
		return cmp.Or(strings.Compare(a.What, b.What), strings.Compare(a.Why, b.Why))
	})
	return r
}

func byPlace(a, b Finding) int {
	return cmp.Or(strings.Compare(string(a.Place.Kind), string(b.Place.Kind)), cmp.Compare(a.Place.PID, b.Place.PID),
		strings.Compare(a.Place.String(), b.Place.String()), strings.Compare(a.Needle, b.Needle),
		strings.Compare(a.Form, b.Form), strings.Compare(a.Part, b.Part))
}

// redact replaces every form of every needle in a text by the needle's name.
func (n *Needles) redact(text string) string { return n.redactBytes([]byte(text)) }

// redactBytes makes a text that holds no value of bytes that may.
func (n *Needles) redactBytes(b []byte) string {
	if len(b) < windowLen {
		return string(b)
	}
	type span struct {
		from, to int
		needle   string
	}
	var spans []span
	err := n.all(b, func(f *form, from, to int64) {
		spans = append(spans, span{int(from), int(to), f.needle})
	})
	if err != nil { // closed: nothing can be compared any more
		return "(redacted)"
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var out strings.Builder
	done := 0
	for _, s := range spans {
		if s.from >= done {
			out.Write(b[done:s.from])
			fmt.Fprintf(&out, "<%s>", s.needle)
		}
		done = max(done, s.to)
	}
	out.Write(b[done:])
	return out.String()
}
