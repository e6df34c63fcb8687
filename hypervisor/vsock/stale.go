// SPDX-License-Identifier: Apache-2.0

package vsock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
//
// The directory is opened once: its owner may not be root, who may run this, and
// could otherwise put a link to another directory in its place between the look and
// the removal.
func RemoveStale(path string) error {
	name := filepath.Base(path)
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	socket, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(socket)
	var seen, now unix.Stat_t
	if err := unix.Fstat(socket, &seen); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if seen.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if err := refuses(socket, path); err != nil {
		return err
	}
	err = unix.Fstatat(dir, name, &now, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err == nil && (now.Dev != seen.Dev || now.Ino != seen.Ino):
		return &InUseError{Path: path} // somebody has just made it
	case err == nil:
		err = unix.Unlinkat(dir, name, 0)
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// refuses is nil if nobody listens at the socket that is open as that descriptor.
func refuses(socket int, path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", socket)}); {
	case err == nil, errors.Is(err, unix.EAGAIN): // EAGAIN: its queue is full
		return &InUseError{Path: path}
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	default:
		return &os.PathError{Op: "connect", Path: path, Err: err}
	}
}
