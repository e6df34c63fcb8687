// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Journal searches what journalctl exports of the system's journal since a
// moment, the zero time for all of it: fields are stored compressed in the
// journal's own files, so those tell nothing. Without a journal it says so in
// the report.
func (s *Search) Journal(ctx context.Context, since time.Time) error {
	var files []string
	for _, dir := range []string{"/var/log/journal", "/run/log/journal"} {
		found, err := filepath.Glob(dir + "/*/*.journal*")
		if err != nil {
			return fmt.Errorf("look for a journal: %w", err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		s.skip("journal", "this machine has none", "")
		return nil
	}
	path, err := exec.LookPath("journalctl")
	if err != nil {
		s.skip("journal", "there is a journal, but no journalctl to read it", files[0])
		return nil
	}
	args := []string{"--no-pager", "--quiet", "--all", "--output=export"}
	if !since.IsZero() {
		args = append(args, fmt.Sprintf("--since=@%d", since.Add(-clockSlack).Unix()))
	}
	return s.journal(ctx, exec.CommandContext(ctx, path, args...))
}

// journal searches what a command prints in the journal's export format.
func (s *Search) journal(ctx context.Context, c *exec.Cmd) error {
	var text strings.Builder
	c.Stderr = &text
	c.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	stream := s.needles.newStream(func(f *form, from, _ int64) { s.found(f, from, Place{Kind: Journal}) })
	var total int64
	var serr error
	for serr == nil {
		n, err := out.Read(stream.room())
		total += int64(n)
		serr = stream.grew(n)
		if err != nil {
			break
		}
	}
	s.count(func(c *Searched) { c.Journal += total })
	serr = errors.Join(serr, stream.end())
	_ = out.Close() // so that the command ends if we stopped early
	if err := c.Wait(); err != nil && serr == nil && ctx.Err() == nil {
		s.skip("journal", "journalctl: "+s.needles.redact(firstLine(text.String(), err.Error())), "")
	}
	return errors.Join(serr, ctx.Err())
}

// firstLine is the first line of what a command said, or else.
func firstLine(text, or string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if line == "" {
		return or
	}
	return line
}

// KernelLog searches the records of the kernel's ring buffer.
func (s *Search) KernelLog(ctx context.Context) error {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		s.failed("kernel log", "/dev/kmsg", err)
		if gone(err) {
			s.skip("kernel log", "there is no /dev/kmsg", "")
		}
		return nil
	}
	defer unix.Close(fd)
	record := make([]byte, 16<<10) // the kernel's own limit is below 8 KiB
	defer clear(record)
	records := 0
	defer func() { s.count(func(c *Searched) { c.KernelLog += records }) }()
	for ctx.Err() == nil {
		n, err := unix.Read(fd, record)
		switch err {
		case nil:
		case unix.EINTR, unix.EPIPE: // EPIPE: records were overwritten meanwhile; go on with the oldest
			continue
		case unix.EAGAIN:
			return nil
		default:
			s.failed("kernel log", "/dev/kmsg", err)
			return nil
		}
		records++
		if err := s.needles.all(record[:n], func(f *form, from, _ int64) {
			s.found(f, from, Place{Kind: KernelLog, Detail: "record " + sequence(record[:n])})
		}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// sequence is the number of a record of /dev/kmsg: "6,339,5140900,-;text".
func sequence(record []byte) string {
	parts := strings.SplitN(string(record[:min(len(record), 64)]), ",", 3)
	if len(parts) < 3 {
		return "?"
	}
	return parts[1]
}
