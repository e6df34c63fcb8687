// SPDX-License-Identifier: Apache-2.0

package folder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/trusted"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/store"
)

// maxValue is the longest value that is read, in bytes (credential.MaxValue). One byte more
// is read, so that who asks can say that it is too long.
const maxValue = 1 << 20

// tries is how often a state of one moment is looked for while somebody replaces it.
const tries = 100

// Snapshot is some generators at one moment: their files, open.
type Snapshot struct {
	f      *Folder
	pinned []*generator
}

// generator is one that is pinned.
type generator struct {
	name  string
	dir   stamp // of its directory
	files []file
}

type file struct {
	name  string
	fd    int
	is    stamp
	links uint64
}

// stamp tells one state of a file or a directory from another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(st *unix.Stat_t) stamp { return stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim} }

// Pin implements store.Store.
func (f *Folder) Pin(ctx context.Context, refs ...store.Ref) (store.Snapshot, error) {
	s, err := f.pin(ctx, refs)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (f *Folder) pin(ctx context.Context, refs []store.Ref) (*Snapshot, error) {
	var err error
	for range tries {
		if cerr := ctx.Err(); cerr != nil {
			return nil, cerr
		}
		var s *Snapshot
		if s, err = f.try(refs); err == nil {
			if err = s.still(); err == nil {
				return s, nil
			}
			_ = s.Close() // only read from
		}
		if !errors.Is(err, store.ErrChanging) {
			return nil, err
		}
	}
	return nil, err
}

// try opens all files once.
func (f *Folder) try(refs []store.Ref) (*Snapshot, error) {
	dir, err := f.open()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	s := &Snapshot{f: f}
	for _, r := range refs {
		if err := f.checkRef(r); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		g, err := f.generator(dir, r.Generator)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.pinned = append(s.pinned, g)
	}
	return s, nil
}

// still makes sure that what was opened one after the other is of one moment.
func (s *Snapshot) still() error {
	dir, err := s.f.open()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for _, g := range s.pinned {
		now, err := s.f.generator(dir, g.name)
		if errors.Is(err, fs.ErrNotExist) {
			return store.ErrChanging
		}
		if err != nil {
			return err
		}
		same := now.dir == g.dir && now.version() == g.version()
		now.close()
		if !same {
			return store.ErrChanging
		}
	}
	return nil
}

// generator opens a generator and its files.
func (f *Folder) generator(dir int, name string) (*generator, error) {
	path := f.path + "/" + name
	fd, err := f.enter(dir, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &Error{Path: path, Err: err}
	}
	if st.Mode&0o022 != 0 {
		return nil, &Error{path, "can be written by others", "chmod 700 " + path, nil}
	}
	g := &generator{name: name, dir: stampOf(&st)}
	entries, err := readDir(fd, path)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // an editor's, or somebody's who is not done
		}
		if len(g.files) == MaxFiles {
			g.close()
			return nil, &Error{path, fmt.Sprintf("has more than %d files", MaxFiles), "", nil}
		}
		opened, err := f.file(fd, path, e.Name())
		if err != nil {
			g.close()
			return nil, err
		}
		g.files = append(g.files, *opened)
	}
	return g, nil
}

// enter opens a generator's directory: one that stands there, or that Put linked there.
func (f *Folder) enter(dir int, name string) (int, error) {
	path := f.path + "/" + name
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	target := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		all, _ := f.generators(dir) // only for a hint
		return -1, &store.NotFoundError{Store: f.String(), Ref: store.Ref{Generator: name}, Names: all}
	case err != nil:
		return -1, &Error{Path: path, Err: err}
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		if target, err = readlink(dir, name); err != nil {
			return -1, store.ErrChanging
		}
		if !isVersion(target, name) {
			return -1, &Error{path, "is a link that leads elsewhere", "put the files there themselves: only vmcred makes links in this folder", nil}
		}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return -1, &Error{path, "is no directory", "each generator has a directory of its own, with a file for each value", nil}
	}
	fd, err := trusted.Directory(path, f.uid)
	if errors.Is(err, fs.ErrNotExist) {
		if now, err := readlink(dir, name); err == nil && now == target { // nobody replaced it
			return -1, &Error{path, "leads to nothing", "bring back what it leads to, or remove it and put the files there again", nil}
		}
		return -1, fmt.Errorf("%s: %w", path, store.ErrChanging)
	}
	return fd, err
}

func readlink(dir int, name string) (string, error) {
	to := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, to)
	if err != nil {
		return "", err
	}
	return string(to[:n]), nil
}

// isVersion: what Put links a generator to.
func isVersion(target, name string) bool {
	random, ok := strings.CutPrefix(target, versions+"/"+name+".")
	return ok && random != "" && CheckName(random) == nil
}

// file opens one file, which nobody else can read or write.
func (f *Folder) file(dir int, path, name string) (*file, error) {
	path += "/" + name
	if err := CheckName(name); err != nil {
		return nil, &Error{path, "has a name that no var can have", "rename it, or give it a '.' in front to leave it out", nil}
	}
	// What is no regular file must not hold us up.
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%s: %w", path, store.ErrChanging)
	case errors.Is(err, unix.ELOOP):
		return nil, &Error{path, "is a link", "put the file itself there", nil}
	case err != nil:
		return nil, &Error{Path: path, Tip: "only its owner and root can read it", Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &Error{Path: path, Err: err}
	}
	what, tip := "", ""
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		what, tip = "is no regular file", "each value is a file of its own"
	case st.Uid != 0 && int(st.Uid) != f.uid:
		what, tip = fmt.Sprintf("belongs to user %d", st.Uid), fmt.Sprintf("chown %d %s", f.uid, path)
	case st.Mode&0o077 != 0:
		what, tip = fmt.Sprintf("is open to others (mode %04o)", st.Mode&0o777), "chmod 400 "+path
	}
	if what != "" {
		_ = unix.Close(fd)
		return nil, &Error{path, what, tip, nil}
	}
	return &file{name, fd, stampOf(&st), uint64(st.Nlink)}, nil
}

// version is made of what tells the files from others, and of no value.
func (g *generator) version() store.Version {
	h := sha256.New()
	for _, f := range g.files {
		fmt.Fprintf(h, "%q %+v\n", f.name, f.is)
	}
	return store.Version(hex.EncodeToString(h.Sum(nil)[:8]))
}

func (g *generator) meta(name string) store.Meta {
	m := store.Meta{Ref: store.Ref{Generator: name}, Version: g.version()}
	for _, f := range g.files {
		m.Files = append(m.Files, store.FileMeta{Name: f.name, Bytes: f.is.size})
	}
	return m
}

func (g *generator) close() {
	for _, f := range g.files {
		_ = unix.Close(f.fd) // only read from
	}
	g.files = nil
}

func (s *Snapshot) find(r store.Ref) *generator {
	for _, g := range s.pinned {
		if r.Scope == "" && g.name == r.Generator {
			return g
		}
	}
	return nil
}

// Version implements store.Snapshot.
func (s *Snapshot) Version(r store.Ref) store.Version {
	if g := s.find(r); g != nil {
		return g.version()
	}
	return ""
}

// Open implements store.Snapshot. A value of more than 1 MiB is a *secret.TooLargeError.
func (s *Snapshot) Open(_ context.Context, a *secret.Arena, r store.Ref, name string) (*secret.Value, error) {
	g := s.find(r)
	if g == nil {
		return nil, fmt.Errorf("generator %s was not pinned", r.Generator)
	}
	var names []string
	for _, f := range g.files {
		if f.name == name {
			return s.read(a, g, f)
		}
		names = append(names, r.Generator+"/"+f.name)
	}
	return nil, &store.NotFoundError{Store: s.f.String(), Ref: r, File: name, Names: names}
}

func (s *Snapshot) read(a *secret.Arena, g *generator, f file) (*secret.Value, error) {
	path := s.f.path + "/" + g.name + "/" + f.name
	v, err := a.Read(&reader{fd: f.fd}, maxValue)
	if err != nil {
		return nil, &Error{Path: path, Tip: hintOf(err), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		v.Wipe()
		return nil, &Error{Path: path, Err: err}
	}
	now := stampOf(&st)
	if uint64(st.Nlink) < f.links { // it was replaced or removed, which changes its ctime and no content
		now.ctime = f.is.ctime
	}
	if now != f.is || v.Len() != int(f.is.size) {
		v.Wipe()
		return nil, &Error{path, "was changed while it was read", "replace a file by a rename, and it is always whole: mv NEW " + path, store.ErrChanging}
	}
	return v, nil
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// reader reads a file from its begin, whatever its offset.
type reader struct {
	fd int
	at int64
}

func (r *reader) Read(p []byte) (int, error) {
	for {
		n, err := unix.Pread(r.fd, p, r.at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		r.at += int64(n)
		return n, nil
	}
}

// Close implements store.Snapshot.
func (s *Snapshot) Close() error {
	for _, g := range s.pinned {
		g.close()
	}
	s.pinned = nil
	return nil
}
