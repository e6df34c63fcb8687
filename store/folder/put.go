// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
)

// Put implements store.Store: the new files are written and synced beside the old ones,
// then one rename replaces the link to them. A plain directory becomes such a link.
func (f *Folder) Put(ctx context.Context, r store.Ref, base store.Version, files []store.File) (store.Version, error) {
	if err := f.checkRef(r); err != nil {
		return "", err
	}
	if err := checkFiles(r, files); err != nil {
		return "", err
	}
	dir, err := f.open()
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	unlock, err := f.lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := f.compare(dir, r, base); err != nil {
		return "", err
	}
	if err := f.ownVersions(dir); err != nil {
		return "", err
	}
	f.tidy(dir)
	defer f.tidy(dir) // whether it went well or not
	name, err := f.write(r.Generator, files)
	if err != nil {
		return "", err
	}
	if err := f.swap(dir, r.Generator, name); err != nil {
		return "", err
	}
	g, err := f.generator(dir, r.Generator)
	if err != nil {
		return "", err
	}
	defer g.close()
	return g.version(), nil
}

// checkFiles refuses what Pin or Open would not give back.
func checkFiles(r store.Ref, files []store.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("generator %s: %d files, more than %d", r.Generator, len(files), MaxFiles)
	}
	seen := map[string]bool{}
	for _, file := range files {
		if err := CheckName(file.Name); err != nil {
			return err
		}
		path := r.Generator + "/" + file.Name
		if seen[file.Name] {
			return fmt.Errorf("%s is there twice", path)
		}
		seen[file.Name] = true
		// A value that was wiped has 0 bytes, too, and is no empty one.
		if err := file.Value.Use(func([]byte) error { return nil }); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if n := file.Value.Len(); n > maxValue {
			return fmt.Errorf("%s: %d bytes, more than %d", path, n, maxValue)
		}
	}
	return nil
}

// ownVersions makes sure that what is written and removed below .versions is in this
// folder, and that nobody else can put anything there.
func (f *Folder) ownVersions(dir int) error {
	path := f.path + "/" + versions
	if err := unix.Mkdirat(dir, versions, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &Error{path, "", "is the disk full? df " + f.path, err}
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, versions, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err != nil:
		return &Error{Path: path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &Error{path, "is no directory", "move it away: vmcred makes its own", nil}
	case st.Uid != 0 && int(st.Uid) != f.uid:
		return &Error{path, fmt.Sprintf("belongs to user %d", st.Uid), fmt.Sprintf("chown %d %s", f.uid, path), nil}
	case st.Mode&0o022 != 0:
		return &Error{path, "can be written by others", "chmod 700 " + path, nil}
	}
	return nil
}

// lock keeps others from writing here. A wait that the context ends is an error.
func (f *Folder) lock(ctx context.Context, dir int) (func(), error) {
	path := f.path + "/" + lockName
	fd, err := unix.Openat(dir, lockName, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &Error{Path: path, Tip: fmt.Sprintf("user %d must be able to write in %s", f.uid, f.path), Err: err}
	}
	got := make(chan error, 1)
	go func() {
		err := unix.Flock(fd, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			_ = unix.Close(fd)
			return nil, &Error{Path: path, Err: err}
		}
		return func() { _ = unix.Close(fd) }, nil
	case <-ctx.Done():
		go func() { <-got; _ = unix.Close(fd) }()
		return nil, &Error{path, "is held by another program that writes here", "wait for it; fuser " + path, ctx.Err()}
	}
}

// compare makes sure that what is to be replaced is what the caller knows.
func (f *Folder) compare(dir int, r store.Ref, base store.Version) error {
	g, err := f.generator(dir, r.Generator)
	now := store.Version("")
	switch {
	case err == nil:
		now = g.version()
		g.close()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if now != base {
		return &store.ConflictError{Store: f.String(), Ref: r, Base: base, Now: now}
	}
	return nil
}

// write makes a directory with the new files, and returns its name below ours.
func (f *Folder) write(generator string, files []store.File) (string, error) {
	name := versions + "/" + generator + "." + strings.ToLower(rand.Text())
	path := filepath.Join(f.path, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", &Error{path, "", "is the disk full? df " + f.path, err}
	}
	for _, file := range files {
		if err := writeFile(filepath.Join(path, file.Name), file.Value); err != nil {
			return "", err
		}
	}
	if err := sync(path); err != nil {
		return "", err
	}
	return name, sync(filepath.Join(f.path, versions))
}

func writeFile(path string, v *secret.Value) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return &Error{Path: path, Err: err}
	}
	if v.Len() > 0 {
		_, err = secret.Rope{{Secret: v}}.WriteTo(out)
	}
	if err == nil {
		err = out.Sync()
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return &Error{Path: path, Tip: "is the disk full? df " + filepath.Dir(path), Err: err}
	}
	return nil
}

func sync(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return &Error{Path: path, Err: err}
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return &Error{Path: path, Err: err}
	}
	return nil
}

// swap has the generator's name lead to the new directory, in one step.
func (f *Folder) swap(dir int, generator, to string) error {
	link := versions + "/.new." + strings.ToLower(rand.Text())
	path := f.path + "/" + generator
	if err := unix.Symlinkat(to, dir, link); err != nil {
		return &Error{Path: path, Err: err}
	}
	err := unix.Renameat(dir, link, dir, generator)
	if errors.Is(err, unix.EISDIR) { // made by hand: it changes places with the link
		err = unix.Renameat2(dir, link, dir, generator, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return &Error{Path: path, Err: err}
	}
	return sync(f.path)
}

// tidy removes what no generator leads to: what was replaced, and what a Put that died had
// begun. Whoever has it open goes on reading it.
func (f *Folder) tidy(dir int) {
	used := map[string]bool{}
	names, err := f.generators(dir)
	if err != nil {
		return // the next Put does it
	}
	for _, name := range names {
		to, err := os.Readlink(filepath.Join(f.path, name))
		switch {
		case err == nil:
			used[filepath.Base(to)] = true
		case !errors.Is(err, unix.EINVAL): // no link, but a directory
			return // where it leads must not go
		}
	}
	entries, err := os.ReadDir(filepath.Join(f.path, versions))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !used[e.Name()] {
			_ = os.RemoveAll(filepath.Join(f.path, versions, e.Name())) // the next Put tries again
		}
	}
}
