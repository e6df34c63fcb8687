// SPDX-License-Identifier: Apache-2.0

// Package daemon is a program that runs beside a VMM and serves one device of its
// guest: what it says goes to the VM's log, and it ends with the VM.
package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/launch"
)

const (
	// grace is how long what the daemon said may take to be read once it is gone,
	// and how long it may be gone before its VMM is: all of a VM may be killed at once.
	grace = time.Second
	// hungUp is the same for one that ended well: its VMM has hung up, and then
	// gives the guest's memory back, which takes a second for some ten GiB.
	hungUp = time.Minute
)

// Daemon is one that runs, or has ended.
type Daemon struct {
	proc *launch.Process
	said *console.Words
	done chan struct{}
}

// Log is where a daemon's words go.
type Log struct {
	Of     string    // whose they are: "virtiofsd"
	Prefix string    // put before each line
	To     io.Writer // nil: nobody hears them
}

// Start starts it; its output is made here. On an error nothing is left running.
func Start(c *launch.Command, log Log) (*Daemon, error) {
	words, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	c.Stdout, c.Stderr = theirs, theirs
	proc, err := c.Start()
	if err != nil {
		return nil, errors.Join(err, words.Close())
	}
	d := &Daemon{
		proc: proc, said: console.Listen(words, &prefixed{log.Prefix, log.To}, log.Of+"'s messages"),
		done: make(chan struct{}),
	}
	go d.settle()
	return d, nil
}

// settle reads its last words.
func (d *Daemon) settle() {
	<-d.proc.Done()
	d.said.Finish(grace)
	close(d.done)
}

// PID is its process number, which is nobody else's while it is [Daemon.Running].
func (d *Daemon) PID() int { return d.proc.PID() }

// Running reports whether its process has not been waited for.
func (d *Daemon) Running() bool { return d.proc.State() == nil }

// Done is closed when it is gone and its words are read.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// EndedWell reports whether it has ended with status 0.
func (d *Daemon) EndedWell() bool {
	state := d.proc.State()
	return state != nil && state.ExitCode() == 0
}

// Words are the last lines it said as one, fit for a message; it may be empty.
func (d *Daemon) Words() string { return d.said.All() }

// How says how it ended, and its last words: "ended (SIGKILL): and said nothing".
func (d *Daemon) How() string {
	state := d.proc.State()
	if state == nil {
		return "runs"
	}
	how := fmt.Sprintf("exit status %d", state.ExitCode())
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		how = unix.SignalName(ws.Signal())
	}
	words := d.Words()
	if words == "" {
		words = "and said nothing"
	}
	return fmt.Sprintf("ended (%s): %s", how, words)
}

// Kill ends it at once, and returns when it is gone.
func (d *Daemon) Kill() {
	_ = d.proc.Kill()
	<-d.done
}

// Outlived waits for the end of the daemon or its VMM, and reports whether the
// VMM goes on without it. One that ends takes its daemons with it, and they may be
// gone first.
func (d *Daemon) Outlived(vmmDone <-chan struct{}) bool {
	select {
	case <-vmmDone:
		return false
	case <-d.done:
		return !Closed(vmmDone, d.patience())
	}
}

func (d *Daemon) patience() time.Duration {
	if d.EndedWell() {
		return hungUp
	}
	return grace
}

// Closed reports whether the channel is closed, or is in time.
func Closed(done <-chan struct{}, patience time.Duration) bool {
	if patience > 0 {
		console.WaitFor(done, patience)
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// prefixed puts a few words before each line; it is given whole ones.
type prefixed struct {
	prefix string
	to     io.Writer
}

func (p *prefixed) Write(b []byte) (int, error) {
	if p.to == nil {
		return len(b), nil
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		out.WriteString(p.prefix + line)
	}
	if _, err := io.WriteString(p.to, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}
