// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/console"
	"github.com/vmcred/vmcred/internal/escape"
	"github.com/vmcred/vmcred/runner"
	"github.com/vmcred/vmcred/vm"
)

// leave is Ctrl-], the key that leaves a console, as in telnet(1) and virsh(1).
const leave = 0x1d

func (a *app) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "console VM",
		Short: "connect the terminal to a VM's console; Ctrl-] leaves",
		Long: `Connect the terminal to the console of a VM that runs and whose file says
console: socket. Ctrl-] leaves; the VM goes on. What the guest may do to the
terminal is limited: no titles, no clipboard, nothing that the terminal answers.
The hypervisor serves one client at a time, and another one waits.

Without a terminal, bytes are copied as they are, until the VM ends.

Exit status: 0 you left, or the VM ended; 78 it does not run, or its console is
somewhere else: the message says where.`,
		Example: `  vmcred console test-vm
  vmcred console test-vm < /dev/null > console.log`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVM,
		RunE:              func(c *cobra.Command, args []string) error { return a.attach(c.Context(), args[0]) },
	}
}

func (a *app) attach(ctx context.Context, arg string) error {
	in, i, err := a.named(ctx, arg)
	if err != nil {
		return err
	}
	defer i.Close()
	if !i.State.runs() {
		return refusedBecause(i, fmt.Sprintf("%s does not run (%s)", i.VM, i.State), "start it first, and see: vmcred status "+i.VM)
	}
	if err := i.elsewhere(); err != nil {
		return err
	}
	dir := filepath.Join(in.root, i.VM)
	if i.found.Handle() != nil {
		dir = i.found.Dir
	}
	conn, err := dialConsole(dir)
	if err != nil {
		return consoleError(i, err)
	}
	defer conn.Close()
	return a.talk(ctx, i.VM, conn)
}

func refusedBecause(i *inspected, message, hint string) error {
	return &runner.RefusedError{Problems: vm.Problems{{Pos: vm.Pos{File: i.File}, Message: message, Hint: hint}}}
}

// elsewhere says where the console of a VM is that has no socket for it.
func (i *inspected) elsewhere() error {
	byUnit := i.found.Handle() == nil
	switch {
	case !byUnit && i.found.Console != "":
		return nil
	case i.spec == nil && byUnit:
		return nil // nothing is known: the socket tells
	case i.spec == nil || i.spec.Console.Mode == vm.ConsoleSocket && !byUnit:
		return refusedBecause(i, i.VM+" was not started with console: socket", "its file, at its next start, says where the console goes")
	}
	switch c := i.spec.Console; {
	case c.Mode == vm.ConsoleSocket:
		return nil
	case c.Mode == vm.ConsoleFile:
		return refusedBecause(i, fmt.Sprintf("the console of %s goes to %s", i.VM, console.QuotePath(c.Path)), "look at it with: less "+console.QuotePath(c.Path))
	case c.Mode == vm.ConsoleOff:
		return refusedBecause(i, i.VM+" has no console (console: off)", "say console: socket in its file, and start it anew")
	case byUnit:
		return refusedBecause(i, fmt.Sprintf("the console of %s goes to the journal", i.VM), "journalctl -f -u "+i.Unit)
	default:
		return refusedBecause(i, fmt.Sprintf("the console of %s is the standard output of vmcred run, process %d", i.VM, i.RunnerPID),
			"look there, or say console: socket in its file, and start it anew")
	}
}

// dialConsole connects to the socket in a VM's runtime directory, which vmcred made,
// or in the directory there that its VMM makes its own in.
func dialConsole(dir string) (conn net.Conn, err error) {
	for _, path := range hypervisor.ConsoleSockets(dir) {
		if conn, err = dialIn(filepath.Dir(path)); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return conn, err
}

// dialIn: a VM's user owns that directory, and could put a link there that leads root
// to another socket. So the socket itself is opened first, and belongs to the
// directory's owner.
func dialIn(path string) (net.Conn, error) {
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, hypervisor.ConsoleSocket, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var owner, sock unix.Stat_t
	if err := errors.Join(unix.Fstat(dir, &owner), unix.Fstat(fd, &sock)); err != nil {
		return nil, err
	}
	if sock.Mode&unix.S_IFMT != unix.S_IFSOCK || sock.Uid != owner.Uid {
		return nil, errors.New("what stands there is no socket of the VM's")
	}
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

func consoleError(i *inspected, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return &runner.FailedError{Op: "console of " + i.VM, Err: errors.New("it has no socket, or ends just now"), Do: "see: vmcred status " + i.VM}
	case errors.Is(err, unix.EACCES):
		return &runner.FailedError{Op: "console of " + i.VM, Err: err, Do: "only root and the VM's own user may"}
	}
	return &runner.FailedError{Op: "console of " + i.VM, Err: err}
}

// talk copies between the terminal and the console until the user leaves, the VM
// ends, or a signal comes. The terminal is as it was after that.
func (a *app) talk(ctx context.Context, name string, conn net.Conn) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGQUIT)
	defer stop()
	keys := isTerminal(a.stdin)
	if keys {
		fmt.Fprintf(a.stderr, "vmcred: console of %s; Ctrl-] leaves\n", name)
		was, err := term.MakeRaw(int(a.stdin.Fd()))
		if err != nil {
			return &runner.FailedError{Op: "console", Err: err}
		}
		defer func() {
			_ = term.Restore(int(a.stdin.Fd()), was)
			fmt.Fprintf(a.stderr, "\r\nvmcred: left the console of %s\n", name)
		}()
	}
	var out io.Writer = a.stdout
	if isTerminal(a.stdout) { // closed before the terminal is as it was
		f := escape.NewFilter(a.stdout, escape.Interact)
		defer f.Close()
		out = f
	}
	ends := make(chan error, 2)
	go func() { ends <- copyOut(out, conn) }()
	go func() {
		// At the end of a file that was our input, the console is still shown.
		if left, err := copyIn(conn, a.stdin, keys); left || err != nil {
			ends <- err
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ends:
		if err != nil {
			return &runner.FailedError{Op: "console of " + name, Err: err}
		}
		return nil
	}
}

// copyOut passes the console on. That the VM ends is no error.
func copyOut(w io.Writer, conn net.Conn) error {
	_, err := io.Copy(w, conn)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// copyIn passes the keys on. It returns true when the one that leaves was pressed,
// or the terminal went away.
func copyIn(conn net.Conn, in *os.File, keys bool) (left bool, err error) {
	buf := make([]byte, 4<<10)
	for {
		n, err := in.Read(buf)
		b := buf[:n]
		if at := bytes.IndexByte(b, leave); keys && at >= 0 {
			b, left = b[:at], true
		}
		if _, werr := conn.Write(b); werr != nil {
			return left, nil // the VM ends: what it said last comes by the other way
		}
		switch {
		case left || err != nil && keys:
			return true, nil
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
	}
}
