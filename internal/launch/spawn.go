// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawn forks and executes from the calling thread and returns when the program
// runs, or with a [*StartError] and nothing left.
func (c *Command) spawn() (*Process, error) {
	p, release, err := c.plan()
	if err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	defer release()
	rules, words, err := newRuleset(c.Mounts)
	if err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	if rules >= 0 {
		defer unix.Close(rules)
	}
	p.ruleset = int32(rules)
	pid, err := c.fork(p)
	if err != nil {
		return nil, err
	}
	proc, err := os.FindProcess(pid) // ours, and not waited for: it is that process
	if err != nil {
		return nil, &StartError{Path: c.Path, Err: err}
	}
	confinement := c.who() + ", " + words + ", no new privileges"
	return &Process{proc: proc, confinement: confinement, done: make(chan struct{})}, nil
}

// fork runs the plan and waits until the program is executed.
func (c *Command) fork(p *childPlan) (int, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, &StartError{Path: c.Path, Err: fmt.Errorf("making a pipe: %w", err)}
	}
	defer unix.Close(pipe[0])
	p.report = int32(pipe[1])

	var all, mask unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	p.mask = &mask
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &mask); err != nil {
		return 0, &StartError{Path: c.Path, Err: errors.Join(err, unix.Close(pipe[1]))}
	}
	pid, errno := forkChild(p)
	runtime.KeepAlive(p)
	err := errors.Join(unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil), unix.Close(pipe[1]))
	if errno != 0 {
		return 0, c.explain(stepNone, errno)
	}
	if err != nil {
		return 0, &StartError{Path: c.Path, Err: errors.Join(err, unix.Kill(int(pid), unix.SIGKILL), reapNow(int(pid)))}
	}
	at, errno := readFailure(pipe[0])
	if errno != 0 {
		_ = reapNow(int(pid)) // it ends right after its report
		return 0, c.explain(at, errno)
	}
	return int(pid), nil
}

// readFailure waits for the child's report. The program's execve closes the pipe
// without one.
func readFailure(fd int) (step, syscall.Errno) {
	var b [8]byte
	for n := 0; n < len(b); {
		got, err := unix.Read(fd, b[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == 0 {
			return stepNone, 0
		}
		n += got
	}
	return step(binary.NativeEndian.Uint32(b[:])), syscall.Errno(binary.NativeEndian.Uint32(b[4:]))
}

func reapNow(pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// plan makes everything the child needs ready. release closes what it opened.
func (c *Command) plan() (p *childPlan, release func(), err error) {
	p = &childPlan{ppid: uintptr(os.Getpid()), ruleset: -1, core: coreLimit()}
	if p.path, err = unix.BytePtrFromString(c.Path); err != nil {
		return nil, nil, err
	}
	if p.dir, err = unix.BytePtrFromString(c.dir()); err != nil {
		return nil, nil, err
	}
	if p.readOnly = c.oldReadOnly; c.ReadOnly != "" && p.readOnly == nil {
		if p.readOnly, err = newReadOnly(c.ReadOnly); err != nil {
			return nil, nil, err
		}
	}
	if p.argv, err = pointers(append([]string{c.Path}, c.Args...)); err != nil {
		return nil, nil, err
	}
	if p.envp, err = pointers(c.Env); err != nil {
		return nil, nil, err
	}
	if id := c.changeTo(); id != nil {
		p.setID, p.uid, p.gid, p.ngroups = true, uintptr(id.UID), uintptr(id.GID), uintptr(len(id.Groups))
		if len(id.Groups) > 0 {
			p.groups = &id.Groups[0]
		}
	}
	files, release, err := c.files()
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		fd, err := number(f)
		if err != nil {
			release()
			return nil, nil, err
		}
		p.files = append(p.files, fd)
	}
	return p, release, nil
}

func pointers(s []string) (**byte, error) {
	ptrs, err := syscall.SlicePtrFromStrings(s)
	if err != nil {
		return nil, err
	}
	return &ptrs[0], nil // the last one is nil
}

// number returns a file's descriptor. Unlike Fd it leaves a non-blocking file so.
func number(f *os.File) (int32, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int32
	err = conn.Control(func(fd uintptr) { n = int32(fd) })
	return n, err
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
