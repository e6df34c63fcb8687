// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
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

// Start starts the process and returns when its program runs. On an error, a
// [*StartError], nothing is left running. The process is killed when this one
// ends, however that happens.
func (c *Command) Start() (*Process, error) {
	if err := c.check(); err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	type result struct {
		p   *Process
		err error
	}
	started := make(chan result, 1)
	go func() {
		// The parent-death signal (PR_SET_PDEATHSIG in prctl(2)) comes when the
		// thread that forked ends. So this one does nothing else, and ends with
		// this goroutine, which leaves it locked.
		runtime.LockOSThread()
		p, err := c.spawn()
		started <- result{p, err}
		if err == nil {
			p.reap()
		}
	}()
	r := <-started
	return r.p, r.err
}

func (p *Process) reap() {
	p.state, _ = p.proc.Wait() // fails only for a process that was waited for already
	close(p.done)
}
