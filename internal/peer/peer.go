// SPDX-License-Identifier: Apache-2.0

// Package peer says who is at the other end of a unix socket: which process, of which
// user, in which unit of this host's systemd. What a peer says of itself counts for
// nothing here.
package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is a peer that is not there any more: its number may be another process's by
// now.
var ErrGone = errors.New("the process at the other end is gone")

// Peer is the process that connected. Close it.
type Peer struct {
	UID, GID uint32
	PID      int
	Start    uint64 // clock ticks after the host's boot (proc_pid_stat(5), field 22)
	// Unit is the system unit it runs in, and Slice that unit's; empty: in none, or one
	// that cannot be seen from here.
	Unit, Slice string
	// Invocation is the unit's present one, 32 hexadecimal digits; empty: not known.
	Invocation string
	// Name is the address that the other end bound, as net.UnixAddr has it; empty: none.
	Name string

	pidfd int
	proc  string
}

// attempts are the ways of this kernel, and where it shows its processes.
type attempts struct {
	pidfd     func(fd int) (int, error) // of the socket's peer itself
	root      string
	proc      string
	afterCred func() // for tests: between knowing the number and looking at the process
}

func ofKernel() attempts {
	return attempts{pidfd: peerPidfd, proc: "/proc"}
}

// peerPidfd is SO_PEERPIDFD (Linux 6.5): a descriptor of the process that connected,
// whatever its number is used for later.
func peerPidfd(fd int) (int, error) {
	return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
}

// Of says who is at the other end of a connection: who connected, or of a connection
// that this process made, who listened. The error is ErrGone if that process has ended.
func Of(c *net.UnixConn) (*Peer, error) { return of(c, ofKernel()) }

func of(c *net.UnixConn, a attempts) (*Peer, error) {
	p := &Peer{pidfd: -1, proc: a.proc}
	if addr, ok := c.RemoteAddr().(*net.UnixAddr); ok && addr != nil && addr.Name != "@" { // Go's word for no name
		p.Name = addr.Name
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cerr error
	err = raw.Control(func(fd uintptr) { cerr = p.credentials(int(fd), a) })
	if err = errors.Join(err, cerr); err != nil {
		return nil, fmt.Errorf("cannot tell who is at the other end of a socket: %w", err)
	}
	if a.afterCred != nil {
		a.afterCred()
	}
	if err := p.look(a); err != nil {
		_ = p.Close() // nothing to lose
		return nil, err
	}
	return p, nil
}

// credentials asks the socket: unix(7), SO_PEERCRED.
func (p *Peer) credentials(fd int, a attempts) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	p.UID, p.GID, p.PID = cred.Uid, cred.Gid, int(cred.Pid)
	if p.PID <= 0 { // of another PID namespace
		return errors.New("it is a process that this one cannot see")
	}
	p.pidfd, err = a.pidfd(fd)
	if errors.Is(err, unix.ENOPROTOOPT) {
		p.pidfd, err = unix.PidfdOpen(p.PID, 0) // Linux 5.3
	} else if err == nil {
		unix.CloseOnExec(p.pidfd)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // it has been waited for
		return ErrGone
	}
	return err
}

// look reads what /proc says of the number, and then makes sure that it was said of the
// process that connected.
func (p *Peer) look(a attempts) error {
	start, err := startOf(p.proc, p.PID)
	if err != nil {
		return err
	}
	p.Start = start
	group, err := os.ReadFile(p.path("cgroup"))
	if err != nil {
		return gone(err)
	}
	p.Unit, p.Slice = unitOf(string(group))
	if p.Unit != "" {
		// A unit that has none is one that systemd does not track; that is for others to mind.
		p.Invocation, err = InvocationOf(a.root, p.Unit)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return p.Check()
}

func (p *Peer) path(name string) string {
	return p.proc + "/" + strconv.Itoa(p.PID) + "/" + name
}

// Check reports whether the process has not ended since Of; the error is ErrGone if it
// has. Where the kernel does not know the peer itself (SO_PEERPIDFD, Linux 6.5) a process
// that took its number over between the connection and Of looks like the one that
// connected: have the peer answer something that was sent after Of, and look who answers
// (unix(7), SCM_CREDENTIALS).
func (p *Peer) Check() error {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}} // readable when it has ended, pidfd_open(2)
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("cannot tell whether a process lives: %w", err)
		case n > 0:
			return ErrGone
		}
		return nil
	}
}

// userHZ is how many ticks of Start a second has (sysconf(3), _SC_CLK_TCK: 100 on every
// Linux that Go runs on).
const userHZ = 100

// Began is when the process was made, not later than it was.
func (p *Peer) Began() time.Time {
	var up unix.Timespec
	now := time.Now() // first, so that what lies between makes it earlier
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	boot := now.Add(-time.Duration(up.Nano()))
	return boot.Add(time.Duration(p.Start) * (time.Second / userHZ))
}

// Close gives up the hold on the process.
func (p *Peer) Close() error {
	if p == nil || p.pidfd < 0 {
		return nil
	}
	fd := p.pidfd
	p.pidfd = -1
	return unix.Close(fd)
}

// startOf reads a process's start time.
func startOf(proc string, pid int) (uint64, error) {
	b, err := os.ReadFile(proc + "/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, gone(err)
	}
	// The second field is a name in parentheses, which may hold anything.
	end := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b)[end+1:])
	const start = 19 // field 22 of all, the third is the first here
	if end < 0 || len(fields) <= start {
		return 0, fmt.Errorf("process %d: its stat file has another form", pid)
	}
	return strconv.ParseUint(fields[start], 10, 64)
}

// gone is what an error of /proc means.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}
