// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is a started process. It is waited for from the start: no zombie stays.
type Process struct {
	proc        *os.Process
	confinement string
	done        chan struct{}
	state       *os.ProcessState // written before done is closed
}

// PID returns the process's number.
func (p *Process) PID() int { return p.proc.Pid }

// Done returns a channel that is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// State returns how the process ended, nil while it runs.
func (p *Process) State() *os.ProcessState {
	select {
	case <-p.done:
		return p.state
	default:
		return nil
	}
}

// Signal sends a signal. It returns [os.ErrProcessDone] when the process is gone,
// and never reaches another one.
func (p *Process) Signal(s os.Signal) error { return p.proc.Signal(s) }

// Kill ends the process and returns when it is gone. Nothing happens when it is already.
func (p *Process) Kill() error {
	if err := p.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing process %d: %w", p.PID(), err)
	}
	<-p.done
	return nil
}

// Confinement says in a few words what confines the process:
// "user vmcred-test, landlock with scopes, no new privileges".
func (p *Process) Confinement() string { return p.confinement }

// Start starts the process. On an error, a [*StartError], nothing is left
// running. The process is killed when this one ends, however that happens.
func (c *Command) Start() (*Process, error) {
	if err := c.check(); err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	if err := limitCore(); err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	if err := closeOthersOnExec(); err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	files, closeNull, err := c.files()
	if err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	defer closeNull()

	type result struct {
		p   *Process
		err error
	}
	started := make(chan result, 1)
	go offMainThread(func() {
		p, err := c.fork(files)
		started <- result{p, err}
		if err == nil {
			p.reap()
		}
	})
	r := <-started
	return r.p, r.err
}

// offMainThread runs f on a thread of its own that ends with f. The main thread
// cannot end, and /proc/PID shows its domain as the whole process's; so when this
// goroutine is on it, it is held there until f has found another.
func offMainThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked: the thread ends with this goroutine
	}
	defer runtime.UnlockOSThread()
	locked := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(locked)
		f()
	}()
	<-locked
}

// fork confines the calling thread and starts the process from it.
func (c *Command) fork(files []*os.File) (*Process, error) {
	words, err := confineThread()
	if err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	env := c.Env
	if env == nil {
		env = []string{} // nil would mean our own
	}
	proc, err := os.StartProcess(c.Path, append([]string{c.Path}, c.Args...), &os.ProcAttr{
		Dir:   c.dir(),
		Env:   env,
		Files: files,
		Sys: &syscall.SysProcAttr{
			Credential: c.credential(),
			Setsid:     true, // Ctrl-C at our terminal is ours to handle
			Pdeathsig:  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, c.explain(err)
	}
	confinement := c.who() + ", " + words + ", no new privileges"
	return &Process{proc: proc, confinement: confinement, done: make(chan struct{})}, nil
}

func (p *Process) reap() {
	p.state, _ = p.proc.Wait() // fails only for a process that was waited for already
	close(p.done)
}

// closeOthersOnExec marks every descriptor of this process from 3 up close-on-exec.
// Go opens all of its own so; this is for those we inherited from our parent.
func closeOthersOnExec() error {
	err := unix.CloseRange(firstDonated, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd") // before Linux 5.11
	if err != nil {
		return fmt.Errorf("listing our descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= firstDonated {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// files returns the child's descriptors in order, and what closes those opened here.
func (c *Command) files() ([]*os.File, func(), error) {
	files := []*os.File{c.Stdin, c.Stdout, c.Stderr}
	for _, d := range c.donated {
		files = append(files, d.file)
	}
	var null *os.File
	for i, f := range files[:firstDonated] {
		if f != nil {
			continue
		}
		if null == nil {
			var err error
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, nil, err
			}
		}
		files[i] = null
	}
	return files, func() {
		if null != nil {
			_ = null.Close()
		}
	}, nil
}
