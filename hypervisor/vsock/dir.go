// SPDX-License-Identifier: Apache-2.0

// Package vsock is the host's end of a guest's vsock: the directory in which a
// VMM has its sockets, and the listeners a guest can reach. cloud-hypervisor,
// Firecracker and vhost-device-vsock connect to the unix socket SOCKET_PORT when
// the guest connects to PORT of its host; with /dev/vhost-vsock the kernel brings
// such a connection to an AF_VSOCK listener.
package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
)

// dirName is the directory in a VM's runtime directory.
const dirName = "vsock"

// maxName is the longest name of a socket: with /proc/self/fd/N/ before it and
// _PORT behind it, it fits in the 108 bytes of a sockaddr_un.
const maxName = 64

// Dir is the directory of a VM's sockets. It belongs to the VMM's user, who
// cannot walk to it: the VMM is given [Dir.File].
type Dir struct {
	path string
	root *os.Root // the runtime directory, which only we write to

	mu   sync.Mutex // guards what follows
	file *os.File   // O_PATH; nil after Close
}

// NotOursError says that something of somebody else is where the directory of
// the sockets is to be.
type NotOursError struct {
	Path string
	Why  string
}

// Error implements error.
func (e *NotOursError) Error() string { return fmt.Sprintf("%s is not ours: %s", e.Path, e.Why) }

// Hint says what to do about it.
func (e *NotOursError) Hint() string {
	return "see what it is, and remove it when no VM uses it: rm -r -- " + e.Path
}

// MakeDir makes the directory "vsock" in runDir, mode 0700, owned by the VMM's
// user; a nil id is our own. What a dead predecessor left there is removed; the
// caller has the lock that says it is dead. Anything but a directory of ours or of
// that user is a [*NotOursError].
func MakeDir(runDir string, id *launch.Identity) (_ *Dir, err error) {
	root, err := os.OpenRoot(runDir)
	if err != nil {
		return nil, fmt.Errorf("the directory for vsock sockets: %w", err)
	}
	d := &Dir{path: filepath.Join(runDir, dirName), root: root}
	defer func() {
		if err != nil {
			_ = root.Close()
		}
	}()
	if err := d.clear(id); err != nil {
		return nil, err
	}
	if err := root.Mkdir(dirName, 0o700); err != nil {
		return nil, fmt.Errorf("the directory for vsock sockets: %w", err)
	}
	if d.file, err = openPath(root, dirName); err != nil {
		return nil, errors.Join(err, root.Remove(dirName))
	}
	if err := give(d.file, unix.S_IFDIR, 0o700, id); err != nil {
		_ = d.file.Close()
		return nil, errors.Join(fmt.Errorf("giving %s to the VMM's user: %w", d.path, err), root.Remove(dirName))
	}
	return d, nil
}

// openPath opens a directory in root as what it is, not as what a link leads to.
func openPath(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the directory for vsock sockets: %w", err)
	}
	return f, nil
}

// give sets mode and owner of what an O_PATH descriptor stands for.
func give(f *os.File, kind uint32, mode fs.FileMode, id *launch.Identity) error {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != kind || int(st.Uid) != os.Geteuid() {
		return errors.New("somebody put something else there")
	}
	// fchmod(2) refuses an O_PATH descriptor.
	if err := os.Chmod(procPath(f), mode); err != nil {
		return err
	}
	if id == nil || int(id.UID) == os.Geteuid() && int(id.GID) == os.Getegid() {
		return nil
	}
	return unix.Fchownat(fd, "", int(id.UID), int(id.GID), unix.AT_EMPTY_PATH)
}

// procPath is a path for what a descriptor of ours stands for.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// clear removes what a predecessor left.
func (d *Dir) clear(id *launch.Identity) error {
	info, err := d.root.Lstat(dirName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for old vsock sockets: %w", err)
	}
	if !info.IsDir() {
		return &NotOursError{Path: d.path, Why: "it is no directory"}
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	if int(uid) != os.Geteuid() && (id == nil || uid != id.UID) {
		return &NotOursError{Path: d.path, Why: "it belongs to uid " + strconv.FormatUint(uint64(uid), 10)}
	}
	return d.remove()
}

// remove removes the directory and whatever the VMM's user put into it. Links are
// not followed.
func (d *Dir) remove() error {
	if d.root.RemoveAll(dirName) == nil {
		return nil
	}
	// Without root's rights a directory of mode 0 stops it.
	_ = fs.WalkDir(d.root.FS(), dirName, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = d.root.Chmod(path, 0o700)
		}
		return nil
	})
	if err := d.root.RemoveAll(dirName); err != nil {
		return fmt.Errorf("removing old vsock sockets: %w", err)
	}
	return nil
}

// File is the directory, open with O_PATH: the VMM inherits it as descriptor N and
// finds a socket NAME as /proc/self/fd/N/NAME. It stays the Dir's.
func (d *Dir) File() *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.file
}

// Path is where a socket is, for messages and for programs of ours.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Close removes the directory with everything in it. Close listeners first, and
// only when the VMM is gone: a VMM that was killed leaves its socket. It may be
// called more than once.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	err := errors.Join(d.remove(), d.file.Close(), d.root.Close())
	d.file = nil
	return err
}

// checkName refuses a name that would be somewhere else or too long.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no name for a socket (1 to %d bytes, no slash)", name, maxName)
	}
	return nil
}
