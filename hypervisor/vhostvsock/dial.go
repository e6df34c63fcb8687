// SPDX-License-Identifier: Apache-2.0

package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pause is between two tries at a socket that is bound and not listened to yet: the
// kernel tells of the one and not of the other.
const pause = time.Millisecond

// dial tries whenever something happens in the directory.
func (s *Server) dial(ctx context.Context) (*os.File, error) {
	watch, err := newWatch(s.o.Dir)
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = watch.SetReadDeadline(time.Unix(0, 0)) })()
	go func() {
		select {
		case <-s.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for events := make([]byte, 4<<10); ; {
		conn, err := s.connect()
		var late time.Time // none: the directory tells
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, unix.ECONNREFUSED):
			late = time.Now().Add(pause)
		case !errors.Is(err, unix.ENOENT):
			return nil, err
		}
		if err := watch.SetReadDeadline(late); err != nil {
			return nil, err
		}
		if ctx.Err() != nil { // perhaps before that deadline was set
			return nil, ctx.Err()
		}
		if _, err := watch.Read(events); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
}

// newWatch can be read from when there is a new file in the directory.
func newWatch(dir *os.File) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	path := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return nil, errors.Join(os.NewSyscallError("inotify_add_watch", err), f.Close())
	}
	return f, nil
}

// connect connects to the daemon's socket and to nothing else: the directory is the
// VMM's user's, and we may be root, to whom each socket of the host is open.
func (s *Server) connect() (*os.File, error) {
	socket, err := unix.Openat(int(s.o.Dir.Fd()), control, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(socket)
	uid := uint32(os.Geteuid())
	if s.o.Identity != nil {
		uid = s.o.Identity.UID
	}
	var st unix.Stat_t
	if err := unix.Fstat(socket, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != uid {
		return nil, errors.New("somebody put something else where its socket should be")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", socket)}); err != nil {
		return nil, errors.Join(os.NewSyscallError("connect", err), f.Close())
	}
	return f, nil
}
