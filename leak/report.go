// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"fmt"
	"io"
	"strings"
)

// Finding is one form of one value in one place. It never holds the value.
type Finding struct {
	Needle string `json:"needle"`
	Form   string `json:"form"`           // "plain", "base64", "hex", …
	Part   string `json:"part,omitempty"` // "first 128 bytes", for long values
	Place  Place  `json:"place"`
	Offset int64  `json:"offset"` // of the first occurrence; an address for Memory
	Count  int    `json:"count"`
	Meant  string `json:"meant,omitempty"` // the name of the Meant that covers it
}

// String returns the finding in one line.
func (f Finding) String() string {
	s := fmt.Sprintf("%s (%s", f.Needle, f.Form)
	if f.Part != "" {
		s += ", " + f.Part
	}
	s += ") in " + f.Place.String()
	switch {
	case f.Place.Kind == Memory:
		s += fmt.Sprintf(", at %#x", f.Offset)
	case f.Place.Kind == File, f.Place.Kind == Descriptor, f.Place.Kind == Journal:
		s += fmt.Sprintf(", at byte %d", f.Offset)
	}
	if f.Count > 1 {
		s += fmt.Sprintf(", %d times", f.Count)
	}
	return s
}

// Skip is something that was not searched.
type Skip struct {
	What    string `json:"what"` // "environ", "file", "mount", …
	Why     string `json:"why"`
	Count   int    `json:"count"`
	Example string `json:"example,omitempty"`
}

// Searched counts what was searched.
type Searched struct {
	Processes   int   `json:"processes,omitempty"`
	Threads     int   `json:"threads,omitempty"`
	Rounds      int   `json:"rounds,omitempty"`    // of Watch
	Files       int   `json:"files,omitempty"`     // contents
	Names       int   `json:"names,omitempty"`     // names in directories
	Unchanged   int   `json:"unchanged,omitempty"` // files whose content is older than Since
	Descriptors int   `json:"descriptors,omitempty"`
	Bytes       int64 `json:"bytes,omitempty"` // of files and descriptors
	Journal     int64 `json:"journal_bytes,omitempty"`
	KernelLog   int   `json:"kernel_log_records,omitempty"`
	Memory      int64 `json:"memory_bytes,omitempty"`
	Execs       int   `json:"execs,omitempty"`
	Writes      int   `json:"writes,omitempty"`
	Written     int64 `json:"written_bytes,omitempty"`
	Paths       int   `json:"paths,omitempty"` // given to traced system calls
}

// Report is what a search found, in a stable order.
type Report struct {
	Places      int       `json:"places"`   // different places outside those meant
	Findings    []Finding `json:"findings"` // outside those meant
	Meant       []Finding `json:"meant"`    // in places meant to hold them
	Searched    Searched  `json:"searched"`
	NotSearched []Skip    `json:"not_searched"`
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	places := "places"
	if r.Places == 1 {
		places = "place"
	}
	fmt.Fprintf(&b, "found in %d %s\n", r.Places, places)
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	if len(r.Meant) > 0 {
		b.WriteString("found where it is meant to be:\n")
		for _, f := range r.Meant {
			fmt.Fprintf(&b, "  %s: %s\n", f.Meant, f)
		}
	}
	fmt.Fprintf(&b, "searched: %s\n", r.Searched)
	if len(r.NotSearched) > 0 {
		b.WriteString("not searched:\n")
		for _, s := range r.NotSearched {
			fmt.Fprintf(&b, "  %s: %s", s.What, s.Why)
			if s.Count > 1 {
				fmt.Fprintf(&b, ", %d times", s.Count)
			}
			if s.Example != "" {
				fmt.Fprintf(&b, " (%s)", s.Example)
			}
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String lists what is not zero.
func (s Searched) String() string {
	var parts []string
	add := func(what string, n int64) {
		if n != 0 {
			parts = append(parts, fmt.Sprintf("%s %d", what, n))
		}
	}
	add("processes", int64(s.Processes))
	add("threads", int64(s.Threads))
	add("rounds", int64(s.Rounds))
	add("files", int64(s.Files))
	add("bytes of files", s.Bytes)
	add("file names", int64(s.Names))
	add("unchanged files by name only", int64(s.Unchanged))
	add("open descriptors", int64(s.Descriptors))
	add("bytes of journal", s.Journal)
	add("kernel log records", int64(s.KernelLog))
	add("bytes of memory", s.Memory)
	add("execs", int64(s.Execs))
	add("writes", int64(s.Writes))
	add("bytes written", s.Written)
	add("paths and names", int64(s.Paths))
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}
