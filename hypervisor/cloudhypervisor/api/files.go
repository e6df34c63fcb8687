// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// sendFiles writes the beginning of data, at least a byte, with the descriptors.
func sendFiles(to *os.File, data []byte, files []*os.File) (sent int, err error) {
	var fds []int
	for _, f := range files {
		conn, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		if err := conn.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return 0, err
		}
	}
	conn, err := to.SyscallConn()
	if err != nil {
		return 0, err
	}
	rights := unix.UnixRights(fds...)
	var serr error
	err = conn.Write(func(fd uintptr) bool {
		for {
			sent, serr = unix.SendmsgN(int(fd), data, rights, nil, unix.MSG_NOSIGNAL)
			if !errors.Is(serr, unix.EINTR) {
				return !errors.Is(serr, unix.EAGAIN)
			}
		}
	})
	return sent, errors.Join(err, serr)
}
