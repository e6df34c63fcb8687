// SPDX-License-Identifier: Apache-2.0

package console

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
)

// openFile opens the console's file for a VMM of that user; nil is the process's own.
func openFile(path string, id *launch.Identity) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		err = CheckFile(path, st, id)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// CheckFile refuses what the guest should not write to: another file under a
// second name, and a file that someone else put there, to read along. The
// identity is the VMM's user, nil the process's own.
func CheckFile(path string, st fs.FileInfo, id *launch.Identity) error {
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is %s, not a regular file", QuotePath(path), KindOf(st.Mode()))
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Errorf("%s: its owner cannot be told", QuotePath(path))
	case sys.Nlink > 1:
		return &hypervisor.Error{Message: QuotePath(path) + " is a file with several names", Cure: "choose another file"}
	case sys.Uid != 0 && int(sys.Uid) != os.Geteuid() && (id == nil || sys.Uid != id.UID):
		return &hypervisor.Error{
			Message: fmt.Sprintf("%s belongs to user %d, who could read the console and change it", QuotePath(path), sys.Uid),
			Cure:    "remove it or chown it, or choose another file",
		}
	}
	return nil
}

// appender writes to a file that may be full for a while: what it does not take
// is lost, and the file is told how much once it takes something again.
type appender struct {
	f    *os.File
	lost int
	why  error
}

// Write never fails: the console goes on when there is room again.
func (a *appender) Write(b []byte) (int, error) {
	if a.lost > 0 {
		note := fmt.Appendf(nil, "\r\n[%d bytes of %s lost: %v]\r\n", a.lost, lossOf, a.why)
		if _, err := a.f.Write(note); err != nil {
			a.lost += len(b)
			return len(b), nil
		}
		a.lost = 0
	}
	n, err := a.f.Write(b)
	if err != nil {
		a.lost, a.why = len(b)-n, errors.Unwrap(err)
	}
	return len(b), nil
}

// listenUnix listens at the path with mode 0600, in place of a socket that a
// former start left there. The mode is set before the bind(2), so there is no
// moment in which others may connect.
func listenUnix(path string) (*os.File, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if errors.Is(err, unix.EINVAL) {
		err = errors.New("the path is too long for a socket: 107 bytes")
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "listen", Path: path, Err: err}, f.Close())
	}
	return f, nil
}
