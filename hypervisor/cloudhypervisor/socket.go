// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// apiSocket is the socket's name for the moment in which it has one.
const apiSocket = "api.sock"

// connected returns a listening socket for the VMM and the one connection to it
// that there will ever be: it has no name any more when the VMM gets it. dir is
// private. The listener must never be shut down: a thread of the VMM would spin.
func connected(dir string) (listener, ours *os.File, err error) {
	path := filepath.Join(dir, apiSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	fds := [2]int{-1, -1}
	for i := range fds {
		if fds[i], err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return nil, nil, errors.Join(os.NewSyscallError("socket", err), closeAll(fds[:i]))
		}
	}
	if err := meet(fds[0], fds[1], path); err != nil {
		return nil, nil, errors.Join(&os.PathError{Op: "listen", Path: path, Err: err}, closeAll(fds[:]))
	}
	return os.NewFile(uintptr(fds[0]), "api listener"), os.NewFile(uintptr(fds[1]), "api"), nil
}

func meet(listener, client int, path string) error {
	addr := &unix.SockaddrUnix{Name: path}
	// Before the bind(2), so there is no moment in which others may connect.
	if err := unix.Fchmod(listener, 0o600); err != nil {
		return err
	}
	if err := unix.Bind(listener, addr); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return errors.New("the path is too long for a socket: 107 bytes")
		}
		return err
	}
	err := unix.Listen(listener, 1)
	if err == nil {
		err = unix.Connect(client, addr)
	}
	if err := errors.Join(err, unix.Unlink(path)); err != nil {
		return err
	}
	return unix.SetNonblock(client, true) // so that a deadline can end a read
}

func closeAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
