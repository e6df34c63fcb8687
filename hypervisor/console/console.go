// SPDX-License-Identifier: Apache-2.0

// Package console is the guest's console and the VMM's own words, on this side
// of a VMM: read without ever making the VM wait, and passed on fit for a log.
package console

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// lossOf is what a slow reader is told it lost.
const lossOf = "console output"

// gather is between two reads of a pipe: a VMM writes a serial port's bytes one by one,
// and being woken for each took a tenth of the time in which a guest boots. 64 KiB have
// room there (pipe(7)), far more than a guest writes meanwhile.
const gather = time.Millisecond

// Console is the guest's serial port on this side.
type Console struct {
	child  *os.File      // the VMM's end, nil with console: off
	ours   io.ReadCloser // the VMM's end is the other of this; nil: the VMM writes by itself
	out    *sink         // where what ours gives goes
	log    *os.File      // the file behind out, if it is one
	pace   *rate.Limiter // of reads that bring a few bytes; nil: none
	finish func()        // of the pace
	done   chan struct{} // with ours only: closed when all was read
	socket string        // the socket's path, removed at the end
}

// Open makes what the mode needs, for a VMM that takes over a connected socket, a
// listening one or a file. A file is opened here, as this process's user: created
// with mode 0600, appended to, never through a link at its end.
func Open(c vm.Console, runDir string, id *launch.Identity, w io.Writer) (*Console, error) {
	switch c.Mode {
	case vm.ConsoleOff:
		return &Console{}, nil
	case vm.ConsoleFile:
		f, err := openFile(c.Path, id)
		if err != nil {
			return nil, &hypervisor.Error{Message: "the console's file", Err: err}
		}
		return &Console{child: f}, nil
	case vm.ConsoleSocket:
		path := filepath.Join(runDir, hypervisor.ConsoleSocket)
		f, err := listenUnix(path)
		if err != nil {
			return nil, &hypervisor.Error{Message: "the console's socket", Err: err}
		}
		return &Console{child: f, socket: path}, nil
	default:
		ours, child, err := SocketPair("console")
		if err != nil {
			return nil, &hypervisor.Error{Message: "the console's pair of sockets", Err: err}
		}
		return &Console{child: child, ours: ours, out: newSink(w, lossOf)}, nil
	}
}

// OpenPipe makes what the mode needs, for a VMM that opens by itself what it
// writes to: a pipe of its user's, which it may open again as /proc/self/fd/N.
// With a file, this process reads the pipe and appends to the file. A socket is the
// VMM's to make, and nothing passes through here.
func OpenPipe(c vm.Console, id *launch.Identity, w io.Writer) (*Console, error) {
	switch c.Mode {
	case vm.ConsoleOff, vm.ConsoleSocket:
		return &Console{}, nil
	}
	ours, child, err := pipe(id)
	if err != nil {
		return nil, &hypervisor.Error{Message: "the console's pipe", Err: err}
	}
	con := &Console{child: child, ours: ours, pace: rate.NewLimiter(rate.Every(gather), 1)}
	if c.Mode == vm.ConsoleFile {
		if con.log, err = openFile(c.Path, id); err != nil {
			con.Finish(0)
			return nil, &hypervisor.Error{Message: "the console's file", Err: err}
		}
		w = &appender{f: con.log}
	}
	con.out = newSink(w, lossOf)
	return con, nil
}

// pipe makes one whose ends belong to that user; nil is the process's own. The
// VMM's end is a blocking one, as a VMM expects it of a file.
func pipe(id *launch.Identity) (ours, child *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	err = unix.SetNonblock(fds[0], true) // so that Close ends a Read
	if err == nil && id != nil {
		// The two ends are one inode, of mode 0600.
		err = os.NewSyscallError("fchown", unix.Fchown(fds[1], int(id.UID), int(id.GID)))
	}
	ours, child = os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	if err != nil {
		return nil, nil, errors.Join(err, ours.Close(), child.Close())
	}
	return ours, child, nil
}

// SocketPair makes a connected pair: ours, and a file for the child.
func SocketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, child := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(mine) // a copy of the descriptor
	_ = mine.Close()
	if err != nil {
		return nil, nil, errors.Join(err, child.Close())
	}
	return conn, child, nil
}

// Child is the VMM's end, to be donated to it; nil with console: off. It stays
// the console's, which closes it.
func (c *Console) Child() *os.File { return c.child }

// Started closes the VMM's end, which the VMM has now, and begins to read.
func (c *Console) Started() {
	c.closeChild()
	if c.ours == nil {
		return
	}
	c.done = make(chan struct{})
	over, finish := context.WithCancel(context.Background())
	c.finish = finish
	go func() {
		defer close(c.done)
		buf := make([]byte, 8<<10)
		for {
			n, err := c.ours.Read(buf)
			c.out.put(buf[:n])
			if err != nil {
				return
			}
			if c.pace != nil && n < len(buf)/2 {
				_ = c.pace.Wait(over) // once it is over what is left is read at once
			}
		}
	}()
}

func (c *Console) closeChild() {
	if c.child != nil {
		_ = c.child.Close()
		c.child = nil
	}
}

// Finish returns when the last output is written, or the patience is over. It
// is safe without Started.
func (c *Console) Finish(patience time.Duration) {
	c.closeChild()
	if c.done != nil {
		c.finish()
		WaitFor(c.done, patience)
	}
	if c.ours != nil {
		_ = c.ours.Close()
	}
	if c.done != nil {
		<-c.done
	}
	if c.out != nil {
		c.out.close(patience)
	}
	if c.log != nil {
		_ = c.log.Close()
	}
	if c.socket != "" {
		_ = os.Remove(c.socket)
	}
}
