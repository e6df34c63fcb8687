// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// Processes searches the command line, the environment and the names of every
// process and thread, this one included. The environment is the one a process
// was started with: what it added itself is in its memory. The error is for
// what keeps the whole search from running; what single processes refuse is
// listed in the report.
func (s *Search) Processes(ctx context.Context) error {
	p := procReader{s: s, buf: make([]byte, 64<<10)}
	defer p.wipe()
	processes, err := p.round(ctx)
	s.count(func(c *Searched) { c.Processes += processes; c.Threads += p.threads })
	return err
}

// Watched says how densely Watch looked.
type Watched struct {
	Rounds int           `json:"rounds"`
	Gap    time.Duration `json:"gap"` // the longest time between the starts of two rounds
}

// Watch searches all processes again and again while f runs, and once more
// after it: a round every interval, or as fast as it can. What lives shorter
// than a round can be missed. It returns f's error, or its own.
func (s *Search) Watch(ctx context.Context, interval time.Duration, f func() error) (Watched, error) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	p := procReader{s: s, buf: make([]byte, 64<<10)}
	defer p.wipe()
	tick := time.NewTicker(max(interval, time.Microsecond))
	defer tick.Stop()
	var w Watched
	var ferr error
	processes, last := 0, time.Now()
	for over := false; ; {
		now := time.Now()
		w.Rounds, w.Gap, last = w.Rounds+1, max(w.Gap, now.Sub(last)), now
		n, err := p.round(context.WithoutCancel(ctx))
		processes = max(processes, n)
		if over || err != nil {
			if !over {
				ferr = <-done
			}
			s.count(func(c *Searched) { c.Processes = max(c.Processes, processes); c.Rounds += w.Rounds })
			return w, errors.Join(ferr, err)
		}
		select {
		case ferr = <-done:
			over = true
		case <-tick.C:
		}
	}
}

// commLen is the longest name the kernel keeps for a thread, proc_pid_comm(5).
const commLen = 15

// procReader reads small files of /proc into a buffer that it wipes.
type procReader struct {
	s       *Search
	buf     []byte
	used    int // the most that was ever in buf
	threads int
}

func (p *procReader) wipe() { clear(p.buf[:p.used]) }

// round searches every process once.
func (p *procReader) round(ctx context.Context) (processes int, err error) {
	pids, err := numbers("/proc")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	p.threads = 0
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return processes, err
		}
		dir := "/proc/" + strconv.Itoa(pid)
		p.strings(pid, dir+"/cmdline", Argv)
		p.strings(pid, dir+"/environ", Environ)
		tids, err := numbers(dir + "/task")
		p.s.failed("thread list", dir, err)
		for _, tid := range tids {
			p.comm(pid, tid)
		}
		processes++
	}
	return processes, nil
}

// strings searches the NUL-separated strings of an argument vector or environment.
func (p *procReader) strings(pid int, path string, kind Kind) {
	text, err := p.read(path)
	if err != nil {
		p.s.failed(string(kind), path, err)
		return
	}
	err = p.s.needles.all(text, func(f *form, from, _ int64) {
		p.s.found(f, from, Place{Kind: kind, PID: pid, Exe: exe(pid), Detail: which(kind == Environ, text, int(from))})
	})
	p.s.failed(string(kind), path, err)
}

// which names the string that holds text[at].
func which(environ bool, text []byte, at int) string {
	if !environ {
		return "argument " + strconv.Itoa(bytes.Count(text[:at], []byte{0}))
	}
	entry := text[bytes.LastIndexByte(text[:at], 0)+1:]
	name, _, ok := bytes.Cut(entry[:min(len(entry), 4096)], []byte{'='})
	if !ok || len(name) > 255 {
		return "a string without a name"
	}
	return "variable " + string(name)
}

// comm searches the name of a thread. The kernel cuts names to 15 bytes, so a
// piece of a value counts too.
func (p *procReader) comm(pid, tid int) {
	path := fmt.Sprintf("/proc/%d/task/%d/comm", pid, tid)
	text, err := p.read(path)
	if err != nil {
		p.s.failed("comm", path, err)
		return
	}
	p.threads++
	text = bytes.TrimSuffix(text, []byte{'\n'})
	hit := func(f *form, from, _ int64) {
		p.s.found(f, from, Place{Kind: Comm, PID: tid, Exe: exe(pid)})
	}
	err = p.s.needles.all(text, hit)
	if err == nil && len(text) == commLen {
		err = p.s.needles.piece(text, hit)
	}
	p.s.failed("comm", path, err)
}

// read reads a file of /proc whole. The bytes are valid until the next read.
func (p *procReader) read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := 0
	for {
		if n == len(p.buf) {
			larger := make([]byte, 2*len(p.buf))
			copy(larger, p.buf)
			clear(p.buf)
			p.buf = larger
		}
		m, err := f.Read(p.buf[n:])
		n += m
		p.used = max(p.used, n)
		if err == io.EOF {
			return p.buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// piece reports the first form that begins with text.
func (n *Needles) piece(text []byte, hit func(f *form, from, to int64)) error {
	return n.blob.Use(func(blob []byte) error {
		for i := range n.forms {
			f := &n.forms[i]
			if bytes.HasPrefix(blob[f.off:f.off+f.len], text) {
				hit(f, 0, int64(len(text)))
				return nil
			}
		}
		return nil
	})
}

// numbers lists the entries of a directory of /proc that are numbers.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !gone(err) {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// exe is what a process runs, or its own name for itself.
func exe(pid int) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return target
}
