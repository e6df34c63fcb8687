// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// InUseError says that somebody listens at the socket's path.
type InUseError struct{ Path string }

// Error implements error.
func (e *InUseError) Error() string { return e.Path + " is in use: another VM listens there" }

// Hint says what to do about it.
func (e *InUseError) Hint() string {
	return "stop the other VM, or give each a socket of its own"
}

// RemoveStale removes the socket at path if nobody listens there any more: a VMM
// that was killed leaves its own, and a VMM does not start where one is. It returns
// an [*InUseError] if somebody does, and an error for anything but a socket.
func RemoveStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: its queue is full
		return &InUseError{Path: path}
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return &os.PathError{Op: "connect", Path: path, Err: err}
	}
}
