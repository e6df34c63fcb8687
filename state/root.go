// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// SystemRoot is the runtime directory of VMs that root or the host's systemd starts.
const SystemRoot = "/run/" + rootName

const rootName = "vmcred"

// Root returns the directory below which each VM has its runtime directory:
// the parent of [UnitDir] in a VM's unit (systemd.exec(5), RuntimeDirectory=),
// /run/vmcred for root, $XDG_RUNTIME_DIR/vmcred for everyone else.
func Root(uid int, getenv func(string) string) (string, error) {
	if dir := UnitDir(getenv); dir != "" {
		return filepath.Dir(dir), nil
	}
	if uid == 0 {
		return SystemRoot, nil
	}
	base := getenv("XDG_RUNTIME_DIR")
	if base == "" {
		base = filepath.Join("/run/user", strconv.Itoa(uid))
	}
	if _, err := os.Stat(base); err != nil || !filepath.IsAbs(base) {
		return "", &NoRuntimeDirError{Dir: base}
	}
	return filepath.Join(base, rootName), nil
}

// UnitDir returns the directory in $RUNTIME_DIRECTORY that a VM's unit has there,
// vmcred/NAME; empty if there is none. A service of another kind that calls us
// has that variable too: beside its directory are those of other programs, and
// a VM may have the name of one.
func UnitDir(getenv func(string) string) string {
	for _, dir := range filepath.SplitList(getenv("RUNTIME_DIRECTORY")) {
		dir = filepath.Clean(dir)
		if filepath.IsAbs(dir) && filepath.Base(filepath.Dir(dir)) == rootName {
			return dir
		}
	}
	return ""
}

// NoRuntimeDirError says that an ordinary user has no runtime directory.
type NoRuntimeDirError struct{ Dir string }

func (e *NoRuntimeDirError) Error() string {
	return fmt.Sprintf("no runtime directory: %s does not exist", e.Dir)
}

// Hint says what to do about it.
func (e *NoRuntimeDirError) Hint() string {
	return "log in through systemd-logind, or set XDG_RUNTIME_DIR to a directory in memory that only you can enter"
}

// makeRoot makes the root directory if it is missing and refuses one that
// somebody else could have put things into.
func makeRoot(root string) error {
	mode := fs.FileMode(0o700)
	if root == SystemRoot {
		// Units run as other users keep their own directories below it.
		mode = 0o755
	}
	if err := os.Mkdir(root, mode); err == nil {
		// Whatever the umask: a closed one would keep every unit out.
		if err := os.Chmod(root, mode); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkOwner(root)
}

// checkOwner refuses a directory that is a link, or that another user owns or can write.
func checkOwner(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.IsDir():
		return &UntrustedError{Path: dir, Why: "is not a directory"}
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return &UntrustedError{Path: dir, Why: fmt.Sprintf("belongs to uid %d", st.Uid)}
	case info.Mode().Perm()&0o022 != 0:
		return &UntrustedError{Path: dir, Why: "can be written by others"}
	}
	return nil
}

// UntrustedError says that a path is not safe to use, because someone else controls it.
type UntrustedError struct{ Path, Why string }

func (e *UntrustedError) Error() string { return fmt.Sprintf("%s %s", e.Path, e.Why) }

// Hint says what to do about it.
func (e *UntrustedError) Hint() string { return "look at who made it, then remove it" }
