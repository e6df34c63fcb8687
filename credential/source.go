// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/secret"
)

// Source is where values come from.
type Source interface {
	// String names the source in messages: "credentials directory /run/credentials/x".
	String() string
	// Names returns every name the source holds, sorted; nil if it cannot tell.
	Names(ctx context.Context) ([]string, error)
	// Open reads one value. The error is fs.ErrNotExist if the source does not
	// have that name, else a *SourceError.
	Open(ctx context.Context, name string) (*secret.Value, error)
	// Close gives up what the source holds open. Values that were read stay.
	Close() error
}

// Versioned is a Source that knows versions of its values.
type Versioned interface {
	// Version is that of a value which was opened, at its own source; "" if it has none
	// or it is not known. It has no control characters, and is no secret.
	Version(name string) string
}

// SourceError is a value that a source should have and that could not be read.
// errors.Is finds the cause, and never fs.ErrNotExist: a name whose file is
// missing must not be looked for elsewhere.
type SourceError struct {
	Name    string // the host's name of the credential
	Path    string
	Missing bool // the file that the name stands for does not exist
	Err     error
	hint    string
}

// Error returns "NAME: PATH: what is wrong".
func (e *SourceError) Error() string {
	msg := e.Err.Error()
	if strings.HasPrefix(msg, e.Path) {
		return e.Name + ": " + msg
	}
	return e.Name + ": " + e.Path + ": " + msg
}

// Unwrap returns the cause, unless a file is missing.
func (e *SourceError) Unwrap() error {
	if e.Missing {
		return nil
	}
	return e.Err
}

// Hint says what to do about it.
func (e *SourceError) Hint() string { return e.hint }

// NoNameError is a name that a source does not have. It is fs.ErrNotExist.
type NoNameError struct {
	Name   string
	Source string
}

// Error names both.
func (e *NoNameError) Error() string {
	return fmt.Sprintf("%s: no such credential in %s", e.Name, e.Source)
}

// Unwrap returns fs.ErrNotExist.
func (e *NoNameError) Unwrap() error { return fs.ErrNotExist }

type directory struct {
	arena *secret.Arena
	path  string
	dir   *os.File
}

// Directory is a credentials directory as systemd makes one: a file a name.
// Values are read into the arena. It is an error if dir is not a directory, or
// if others than root and this process's user can write it or a directory on
// its way. dir must be absolute. The directory stays open until Close: it is
// the same one for all names, whatever becomes of its path.
func Directory(a *secret.Arena, dir string) (Source, error) {
	d := &directory{arena: a, path: filepath.Clean(dir)}
	fd, err := trusted.Directory(dir, os.Geteuid())
	if err != nil {
		return nil, sourceError("credentials directory", dir, err)
	}
	d.dir = os.NewFile(uintptr(fd), d.path)
	return d, nil
}

func (d *directory) String() string { return "credentials directory " + d.path }

func (d *directory) Close() error { return d.dir.Close() }

func (d *directory) Names(context.Context) ([]string, error) {
	if _, err := d.dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	entries, err := d.dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if t := e.Type(); (t.IsRegular() || t&fs.ModeSymlink != 0) && CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (d *directory) Open(ctx context.Context, name string) (*secret.Value, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path := filepath.Join(d.path, name)
	fd, err := trusted.FileIn(int(d.dir.Fd()), d.path, name, os.Geteuid())
	if errors.Is(err, trusted.ErrNoName) {
		return nil, &NoNameError{name, d.String()}
	}
	if err != nil {
		return nil, sourceError(name, path, err)
	}
	return readDescriptor(d.arena, fd, name, path)
}

type files struct {
	arena *secret.Arena
	paths map[string]string
}

// Files is a file for each name: paths maps host names to absolute paths. Values
// are read into the arena. A file must be a regular one; it is refused if others
// than root and this process's user can write it or a directory on its way.
// Links are followed, and in a sticky directory the file's own owner and mode
// decide.
func Files(a *secret.Arena, paths map[string]string) Source {
	return &files{arena: a, paths: maps.Clone(paths)}
}

func (f *files) String() string { return "the named files" }

func (f *files) Close() error { return nil }

func (f *files) Names(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(f.paths)), nil
}

func (f *files) Open(ctx context.Context, name string) (*secret.Value, error) {
	path, ok := f.paths[name]
	if !ok {
		return nil, &NoNameError{name, f.String()}
	}
	return readFile(ctx, f.arena, name, path)
}

// readFile reads a file to its end, whatever its size was before.
func readFile(ctx context.Context, a *secret.Arena, name, path string) (*secret.Value, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := trusted.File(path, os.Geteuid())
	if err != nil {
		return nil, sourceError(name, path, err)
	}
	return readDescriptor(a, fd, name, path)
}

// readDescriptor reads an open file to its end and closes it.
func readDescriptor(a *secret.Arena, fd int, name, path string) (*secret.Value, error) {
	defer unix.Close(fd) // only read from: nothing to lose
	v, err := a.Read(reader(fd), MaxValue)
	if err != nil {
		return nil, sourceError(name, path, err)
	}
	return v, nil
}

// reader reads a descriptor of a regular file. An os.File would first try to
// poll it, which takes more calls than the reading itself.
type reader int

func (r reader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(r), p)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func sourceError(name, path string, err error) error {
	e := &SourceError{Name: name, Path: path, Err: err}
	var trust *trusted.Error
	var large *secret.TooLargeError
	var lock *secret.LockError
	var hinted interface{ Hint() string }
	switch {
	case errors.As(err, &trust) && strings.HasPrefix(trust.What, "is a socket"):
		e.hint = "LoadCredential= in the VM's unit can read a socket"
	case errors.As(err, &trust) && trust.Tip != "":
		e.hint = trust.Tip
	case errors.As(err, &large):
		e.hint = "a guest's systemd takes credentials of at most 1 MiB: is this the right file?"
	case errors.As(err, &lock): // its EPERM is not the file's
		e.hint = lock.Hint()
	case errors.Is(err, fs.ErrNotExist):
		e.Missing = true
		e.hint = "check the path; if something else makes this file, that has to run before the VM starts"
	case errors.Is(err, fs.ErrPermission):
		e.hint = fmt.Sprintf("user %d may not read it: LoadCredential= in the VM's unit lets systemd read it as root (systemctl daemon-reload, if its line is new)", os.Geteuid())
	case errors.As(err, &hinted):
		e.hint = hinted.Hint()
	}
	return e
}

type chain []Source

// Chain asks the sources in order: the first that has a name wins, and an error
// other than fs.ErrNotExist ends the search.
func Chain(sources ...Source) Source { return chain(slices.Clone(sources)) }

func (c chain) String() string {
	if len(c) == 0 {
		return "any source (none is given)"
	}
	names := make([]string, len(c))
	for i, s := range c {
		names[i] = s.String()
	}
	return strings.Join(names, ", ")
}

func (c chain) Close() error {
	var errs []error
	for _, s := range c {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (c chain) Names(ctx context.Context) ([]string, error) {
	var all []string
	for _, s := range c {
		names, err := s.Names(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (c chain) Open(ctx context.Context, name string) (*secret.Value, error) {
	for _, s := range c {
		v, err := s.Open(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return v, err
	}
	return nil, &NoNameError{name, c.String()}
}
