// SPDX-License-Identifier: Apache-2.0

// Package folder is the plainest store: a directory with a directory for each generator,
// and in that a file for each value, which only its owner can read. What protects it on
// the disk is the disk's own encryption, if there is any.
//
//	DIR/GENERATOR/FILE
//	DIR/GENERATOR -> .versions/GENERATOR.RANDOM     after the first Put
package folder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/store"
)

const (
	// MaxName is how long the name of a generator or a file may be, in bytes.
	MaxName = 200
	// MaxFiles is how many files a generator may have.
	MaxFiles = 1023

	versions = ".versions"
	lockName = ".lock"
)

// Folder is a store.Store. It holds nothing open between two calls.
type Folder struct {
	path string
	uid  int
}

// Open is the store in a directory, an absolute path: it, what is in it and the way to it
// must be written by nobody but root and that user. It is looked at when it is used.
func Open(path string, uid int) (*Folder, error) {
	f := &Folder{filepath.Clean(path), uid}
	dir, err := f.open()
	if err != nil {
		return nil, err
	}
	return f, unix.Close(dir)
}

func (f *Folder) String() string { return "the vars in " + f.path }

// open opens the directory itself.
func (f *Folder) open() (int, error) {
	fd, err := trusted.Directory(f.path, f.uid)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, &Error{f.path, "does not exist", "make it: install -d -m 700 " + f.path, err}
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o022 != 0 { // sticky is not enough here
		_ = unix.Close(fd)
		return -1, errors.Join(err, &Error{f.path, "can be written by others", "chmod 700 " + f.path, nil})
	}
	return fd, nil
}

// Error says what is wrong with which path.
type Error struct {
	Path, What string
	Tip        string // what to do about it
	Err        error  // the system's error, or nil
}

// Error returns "PATH: what is wrong".
func (e *Error) Error() string {
	if e.What == "" {
		return e.Path + ": " + e.Err.Error()
	}
	return e.Path + ": it " + e.What
}

// Hint says what to do about it.
func (e *Error) Hint() string { return e.Tip }

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Err }

// CheckName tells whether a generator or a file may have that name: 1 to MaxName bytes of
// letters, digits, ".", "_" and "-", and no "." first.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	switch {
	case name == "", len(name) > MaxName, name[0] == '.', name[0] == '-', strings.Trim(name, letters) != "":
		return fmt.Errorf("%q is no name for a generator or a file: 1 to %d letters, digits, '.', '_' and '-', the first a letter or digit", name, MaxName)
	}
	return nil
}

// checkRef: this store has one scope, its machine's own.
func (f *Folder) checkRef(r store.Ref) error {
	if r.Scope != "" {
		return &store.NotFoundError{Store: f.String(), Ref: r}
	}
	return CheckName(r.Generator)
}

// generators lists them, by name.
func (f *Folder) generators(dir int) ([]string, error) {
	entries, err := readDir(dir, f.path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if CheckName(e.Name()) == nil && (e.IsDir() || e.Type()&fs.ModeSymlink != 0) {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// readDir reads a directory that is open, which it leaves open.
func readDir(dir int, path string) ([]os.DirEntry, error) {
	own, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{Path: path, Err: err}
	}
	d := os.NewFile(uintptr(own), path)
	defer d.Close()
	return d.ReadDir(-1)
}

// List implements store.Store.
func (f *Folder) List(ctx context.Context) iter.Seq2[store.Meta, error] {
	return func(yield func(store.Meta, error) bool) {
		dir, err := f.open()
		var names []string
		if err == nil {
			names, err = f.generators(dir)
			_ = unix.Close(dir)
		}
		if err != nil {
			yield(store.Meta{}, err)
			return
		}
		for _, name := range names {
			s, err := f.pin(ctx, []store.Ref{{Generator: name}})
			if errors.Is(err, fs.ErrNotExist) {
				continue // it went since
			}
			if err != nil {
				yield(store.Meta{}, err)
				return
			}
			m := s.pinned[0].meta(name)
			_ = s.Close()
			if !yield(m, nil) {
				return
			}
		}
	}
}
