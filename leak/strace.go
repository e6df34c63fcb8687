// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Trace is a command to run under strace.
type Trace struct {
	Argv       []string // Argv[0] is looked up in Env's PATH unless it has a "/"
	Env        []string // nil: this process's own
	Dir        string
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer
	ExtraFiles []*os.File // the command's descriptors from 3 on
}

// Traced is what a trace was.
type Traced struct {
	ExitCode int           `json:"exit_code"` // the command's; -1 if a signal ended it
	Lines    int           `json:"lines"`
	Unknown  int           `json:"unknown_lines"` // lines that could not be read; in the report too
	Bytes    int64         `json:"bytes"`         // of strace's output
	Duration time.Duration `json:"duration"`
}

// NoStraceError says that strace is missing or cannot trace here.
type NoStraceError struct{ Err error }

// Error says why.
func (e *NoStraceError) Error() string { return "strace: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *NoStraceError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *NoStraceError) Hint() string {
	return "install the package strace, and run where ptrace(2) is allowed"
}

// maxString is the longest string of one argument that strace shows, in bytes.
const maxString = 16 << 20

// Strace runs a command to its end under strace -f and searches every argument
// and environment of execve, every byte written or sent to a descriptor (also
// where a value is split over several writes to the same target) and every path
// given to a call that makes, renames or opens a file, of the command and of
// all processes it starts. The trace goes through a pipe and is never a file.
//
// Bytes that strace itself cannot read, as those a process writes straight from
// memfd_secret(2) pages, are a finding named [Unreadable], with the form
// "unreadable": whether they are meant is for a [Meant] to say.
//
// The command runs with no_new_privs, which strace's seccomp filter needs. To
// trace a command that makes itself undumpable, be root. What other processes
// do for the command, such as a service manager, is not in the trace.
//
// The command's own failure is no error: see Traced.ExitCode. When ctx ends,
// the command's process group is killed.
func (s *Search) Strace(ctx context.Context, t Trace) (Traced, error) {
	path, err := exec.LookPath("strace")
	if err != nil {
		return Traced{}, &NoStraceError{err}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return Traced{}, fmt.Errorf("strace: %w", err)
	}
	defer r.Close()
	// strace opens our end of the pipe by its path, so that the command does not
	// inherit a descriptor. We close it when the first line shows that this is done.
	closeOurs := sync.OnceFunc(func() { _ = w.Close() })
	defer closeOurs()
	args := []string{
		"-f", "-q", "-xx", "-v", "-s", strconv.Itoa(maxString), "--decode-fds=path,socket,dev", "--seccomp-bpf",
		"-e", "trace=" + tracedCalls(), "-o", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.Fd()), "--",
	}
	var said head
	c := exec.CommandContext(ctx, path, append(args, t.Argv...)...)
	c.Env, c.Dir, c.Stdin, c.Stdout, c.Stderr, c.ExtraFiles = t.Env, t.Dir, t.Stdin, t.Stdout, &said, t.ExtraFiles
	if t.Stderr != nil {
		c.Stderr = t.Stderr
	}
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	begin := time.Now()
	if err := c.Start(); err != nil {
		return Traced{}, &NoStraceError{err}
	}
	ended := make(chan error, 1)
	go func() {
		ended <- c.Wait()
		closeOurs()
	}()
	tr := newTracer(s)
	out, err := tr.read(r, closeOurs)
	if err != nil { // we stopped reading: end what would wait for us
		_ = c.Cancel()
	}
	werr := <-ended
	out.Duration, out.ExitCode = time.Since(begin), c.ProcessState.ExitCode()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = errors.Join(err, ctx.Err())
	case err == nil && tr.count.Execs == 0:
		err = &NoStraceError{fmt.Errorf("nothing was traced: %s", s.needles.redact(firstLine(said.String(), "it said nothing here")))}
	case err == nil && werr != nil && !errors.As(werr, &exit):
		err = fmt.Errorf("strace: %w", werr)
	}
	return out, err
}

// head keeps the first bytes of what a command says.
type head struct{ bytes.Buffer }

// Write never fails.
func (h *head) Write(p []byte) (int, error) {
	if room := 4096 - h.Len(); room > 0 {
		_, _ = h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// maxLine is the longest line of a trace that is searched whole, in bytes.
const maxLine = 16 * maxString

// read searches strace's output as it comes; started is called with its first byte.
func (t *tracer) read(r io.Reader, started func()) (Traced, error) {
	out := Traced{}
	buf := make([]byte, 1<<20)
	defer func() {
		clear(buf)
		t.forget()
	}()
	fill, over := 0, false
	for {
		n, rerr := r.Read(buf[fill:])
		if n > 0 {
			started()
		}
		out.Bytes += int64(n)
		from := 0
		for searched := fill; ; searched = from {
			i := bytes.IndexByte(buf[searched:fill+n], '\n')
			if i < 0 {
				break
			}
			line := buf[from : searched+i]
			from = searched + i + 1
			out.Lines++
			if over { // the end of a line that was too long
				over = false
				continue
			}
			if err := t.line(line); err != nil {
				return out, err
			}
		}
		rest := copy(buf, buf[from:fill+n])
		clear(buf[rest : fill+n])
		fill = rest
		switch {
		case rerr == nil && fill == len(buf) && len(buf) >= maxLine:
			t.unknown++
			over, fill = true, 0
		case rerr == nil && fill == len(buf):
			larger := make([]byte, 2*len(buf))
			copy(larger, buf)
			clear(buf)
			buf = larger
		case rerr != nil:
			if fill > 0 {
				t.unknown++ // strace was ended in the middle of a line
			}
			return t.finish(out, rerr)
		}
	}
}

// finish adds what was searched to the report.
func (t *tracer) finish(out Traced, err error) (Traced, error) {
	c := t.count
	t.s.count(func(s *Searched) {
		s.Execs += c.Execs
		s.Writes += c.Writes
		s.Written += c.Written
		s.Paths += c.Paths
	})
	out.Unknown = t.unknown
	for range t.unknown {
		t.s.skip("line of a trace", "it could not be read", "")
	}
	if err == io.EOF {
		err = nil
	}
	return out, err
}
