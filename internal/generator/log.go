// SPDX-License-Identifier: Apache-2.0

package generator

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// openLog is where a generator's words go: there may be no journal yet, so to the
// kernel's log, which the journal reads (systemd.generator(7)); to stderr for a
// person, and where there is no kernel's log.
func openLog() io.Writer {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		return &lines{os.Stderr, "vmcred: "}
	}
	// It is not closed: this process ends before long.
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		return &lines{f, fmt.Sprintf("<4>%s[%d]: ", Name, os.Getpid())} // 4: a warning (syslog(3))
	}
	return &lines{os.Stderr, Name + ": "}
}

// lines puts a prefix before each write, which is one line: a write is a record of
// the kernel's log.
type lines struct {
	w      io.Writer
	prefix string
}

func (l *lines) Write(b []byte) (int, error) {
	_, err := l.w.Write(append([]byte(l.prefix), b...))
	return len(b), err
}
