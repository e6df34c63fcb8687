// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrOwnMemory is returned by Memory for the searching process itself: its
// read buffers would be found.
var ErrOwnMemory = errors.New("a process cannot search its own memory; search it from another one")

// Copies is how often one form of one value is in a process's memory.
type Copies struct {
	Needle   string         `json:"needle"`
	Form     string         `json:"form"`
	Part     string         `json:"part,omitempty"`
	Count    int            `json:"count"`
	Mappings map[string]int `json:"mappings"` // by the name in /proc/PID/maps, "anonymous" for none
}

// MemoryCount is what Memory found in one process.
type MemoryCount struct {
	PID        int      `json:"pid"`
	Copies     []Copies `json:"copies"`     // outside the places meant to hold them
	Meant      []Copies `json:"meant"`      // in those
	Bytes      int64    `json:"bytes"`      // searched
	Unreadable int64    `json:"unreadable"` // bytes that the kernel does not show, as memfd_secret(2) has it
}

// Total is the number of copies outside the places meant to hold them.
func (m *MemoryCount) Total() int {
	n := 0
	for _, c := range m.Copies {
		n += c.Count
	}
	return n
}

// Memory counts copies of the values in the pages that a process has in memory
// or in swap, through /proc/PID/mem. The process runs on meanwhile: stop it
// first for an exact count. Pages of a file or memfd that it mapped but never
// touched are not its memory; Descriptors searches memfds.
func (s *Search) Memory(ctx context.Context, pid int) (*MemoryCount, error) {
	if pid == os.Getpid() {
		return nil, ErrOwnMemory
	}
	m := &memory{s: s, pid: pid, exe: exe(pid), count: MemoryCount{PID: pid, Copies: []Copies{}, Meant: []Copies{}}}
	err := m.search(ctx)
	s.count(func(c *Searched) { c.Memory += m.count.Bytes })
	if err != nil {
		return nil, fmt.Errorf("search the memory of process %d: %w", pid, err)
	}
	return &m.count, nil
}

type memory struct {
	s       *Search
	pid     int
	exe     string
	mem     *os.File
	pagemap *os.File
	stream  *stream
	begin   uint64 // address of the stream's first byte
	end     uint64 // where the bytes so far end
	maps    []mapping
	count   MemoryCount
}

// mapping is one line of /proc/PID/maps.
type mapping struct {
	from, to uint64
	name     string
}

func (m *memory) search(ctx context.Context) (err error) {
	dir := fmt.Sprintf("/proc/%d/", m.pid)
	maps, err := os.Open(dir + "maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	if m.mem, err = os.Open(dir + "mem"); err != nil {
		return err
	}
	defer m.mem.Close()
	if m.pagemap, err = os.Open(dir + "pagemap"); err != nil {
		return err
	}
	defer m.pagemap.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if mp, ok := parseMapping(lines.Text()); ok {
			m.maps = append(m.maps, mp)
		}
	}
	m.stream = m.s.needles.newStream(m.hit)
	for _, mp := range m.maps {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, m.stream.end())
		}
		if err := m.mapping(mp); err != nil {
			return errors.Join(err, m.stream.end())
		}
	}
	return m.stream.end()
}

// parseMapping reads "7f…-7f… rw-p 00000000 00:00 0    [heap]". Mappings that
// cannot be read, and the kernel's own, are left out.
func parseMapping(line string) (mapping, bool) {
	var mp mapping
	var perms, offset, dev, inode string
	n, err := fmt.Sscanf(line, "%x-%x %s %s %s %s", &mp.from, &mp.to, &perms, &offset, &dev, &inode)
	if n < 6 || err != nil || !strings.HasPrefix(perms, "r") || mp.to <= mp.from {
		return mp, false
	}
	if fields := strings.SplitN(line, " ", 6); len(fields) == 6 {
		mp.name = strings.TrimLeft(strings.TrimPrefix(fields[5], " "), " ")
	}
	switch mp.name {
	case "[vsyscall]", "[vvar]", "[vvar_vclock]":
		return mp, false
	case "":
		mp.name = "anonymous"
	}
	return mp, true
}

// mapping searches the pages of one mapping that are there.
func (m *memory) mapping(mp mapping) error {
	const batch = 4096 // pages
	page := uint64(os.Getpagesize())
	entries := make([]byte, batch*8)
	for at := mp.from; at < mp.to; at += batch * page {
		pages := min(batch, (mp.to-at)/page)
		if _, err := m.pagemap.ReadAt(entries[:pages*8], int64(at/page*8)); err != nil {
			m.count.Unreadable += int64(pages * page)
			continue
		}
		for first := uint64(0); first < pages; {
			last := first
			for last < pages && there(entries[last*8:]) {
				last++
			}
			if last == first {
				first++
				continue
			}
			if err := m.pages(at+first*page, at+last*page); err != nil {
				return err
			}
			first = last
		}
	}
	return nil
}

// there reports whether a page is in memory or swap, from its entry in
// /proc/PID/pagemap (bits 63 and 62, the kernel's pagemap document).
func there(entry []byte) bool { return binary.NativeEndian.Uint64(entry)>>62 != 0 }

// pages searches [from, to), as one text with what was just before it.
func (m *memory) pages(from, to uint64) error {
	if from != m.end {
		if err := m.stream.end(); err != nil {
			return err
		}
		m.begin = from
	}
	for m.end = from; m.end < to; {
		room := m.stream.room()
		room = room[:min(uint64(len(room)), to-m.end)]
		n, err := unix.Pread(int(m.mem.Fd()), room, int64(m.end))
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ESRCH || err == nil && n == 0:
			return errors.New("the process ended")
		case err != nil: // not shown: skip this page
			m.count.Unreadable += int64(os.Getpagesize())
			if err := m.stream.end(); err != nil {
				return err
			}
			m.end += uint64(os.Getpagesize())
			m.begin = m.end
			continue
		}
		m.end += uint64(n)
		m.count.Bytes += int64(n)
		if err := m.stream.grew(n); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) hit(f *form, from, _ int64) {
	at := m.begin + uint64(from)
	name := "anonymous"
	for _, mp := range m.maps {
		if at >= mp.from && at < mp.to {
			name = mp.name
		}
	}
	p := Place{Kind: Memory, PID: m.pid, Exe: m.exe, Detail: m.s.needles.redact(name)}
	list := &m.count.Copies
	if m.s.isMeant(p) != "" {
		list = &m.count.Meant
	}
	m.s.found(f, int64(at), p)
	for i := range *list {
		c := &(*list)[i]
		if c.Needle == f.needle && c.Form == f.name && c.Part == f.part {
			c.Count++
			c.Mappings[p.Detail]++
			return
		}
	}
	*list = append(*list, Copies{Needle: f.needle, Form: f.name, Part: f.part, Count: 1, Mappings: map[string]int{p.Detail: 1}})
}
