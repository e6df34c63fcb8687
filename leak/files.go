// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMaxFile is how many bytes of one file are searched if Files does not say.
const DefaultMaxFile = 1 << 30

// clockSlack is how much older than Since a change may look: the kernel's file
// times lag behind the clock, and some file systems keep even seconds only.
const clockSlack = 2 * time.Second

// Files says which files to search.
type Files struct {
	Roots []string // directories or files, absolute
	// Since leaves out the content of files that did not change since then, by
	// ctime, which cannot be set back. All names are searched. Zero: all content.
	// A write through a shared mapping may leave no ctime, so files on tmpfs and
	// ramfs, and those below Always, are searched however old they are.
	Since   time.Time
	Always  []string
	MaxFile int64 // bytes of data of one file, 0 for DefaultMaxFile; of a larger one the end
	Workers int   // 0 for 2
}

// DefaultAlways is where programs keep files open and write to them through
// mappings, or leave what they should not: runtime directories, logs, /tmp.
func DefaultAlways() []string {
	return []string{"/run", "/tmp", "/var/tmp", "/var/log", "/dev/shm"}
}

// Files searches the content, names, symbolic links and extended attributes of
// the files below the roots. Links are not followed; mounts are, but for those
// of the kernel's own and of network file systems, which the report lists. The
// error is for what keeps the whole search from running.
func (s *Search) Files(ctx context.Context, o Files) error {
	if o.MaxFile <= 0 {
		o.MaxFile = DefaultMaxFile
	}
	if o.Workers <= 0 {
		o.Workers = 2
	}
	o.Always = slices.Clone(o.Always)
	for i, dir := range o.Always {
		o.Always[i] = filepath.Clean(dir)
	}
	w := &walk{s: s, o: o, seen: map[inode]bool{}}
	w.more = sync.NewCond(&w.mu)
	for _, root := range o.Roots {
		var st unix.Stat_t
		if err := unix.Lstat(root, &st); err != nil {
			return fmt.Errorf("search %s: %w", root, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			w.single = append(w.single, filepath.Clean(root))
			continue
		}
		w.push(dirJob{path: filepath.Clean(root), root: true})
	}
	errs := make([]error, o.Workers)
	var wg sync.WaitGroup
	for i := range o.Workers {
		wg.Go(func() { errs[i] = w.work(ctx, i == 0) })
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

type inode struct{ dev, ino uint64 }

// dirJob is a directory to search.
type dirJob struct {
	path   string
	dev    uint64 // its parent's
	root   bool
	always bool // its files are searched however old
}

// walk is one search of trees: a stack of directories and the workers' state.
type walk struct {
	s      *Search
	o      Files
	single []string // roots that are no directories

	mu   sync.Mutex // guards the fields below
	more *sync.Cond
	jobs []dirJob
	busy int
	seen map[inode]bool // directories, so that bind mounts are searched once
}

func (w *walk) push(jobs ...dirJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = append(w.jobs, jobs...)
	w.more.Broadcast()
}

// pop waits for a directory; false when none will come.
func (w *walk) pop(stop bool) (dirJob, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.jobs) == 0 && w.busy > 0 && !stop {
		w.more.Wait()
	}
	if len(w.jobs) == 0 || stop {
		w.more.Broadcast()
		return dirJob{}, false
	}
	j := w.jobs[len(w.jobs)-1]
	w.jobs = w.jobs[:len(w.jobs)-1]
	w.busy++
	return j, true
}

func (w *walk) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	w.more.Broadcast()
}

// first reports whether this directory was not searched yet.
func (w *walk) first(st *unix.Stat_t) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := inode{st.Dev, st.Ino}
	if w.seen[id] {
		return false
	}
	w.seen[id] = true
	return true
}

func (w *walk) work(ctx context.Context, leads bool) error {
	f := newFileReader(w.s, w.o.MaxFile)
	defer f.close()
	if leads {
		for _, path := range w.single {
			f.names = append(append(f.names[:0], path...), 0)
			f.searchNames("/", f.names)
			f.file(unix.AT_FDCWD, path, path)
		}
	}
	for {
		j, ok := w.pop(ctx.Err() != nil)
		if !ok {
			return nil
		}
		err := w.dir(ctx, f, j)
		w.done()
		if err != nil {
			return err
		}
	}
}

// dir searches one directory and puts those below it on the stack.
func (w *walk) dir(ctx context.Context, f *fileReader, j dirJob) error {
	fd, err := unix.Open(j.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		w.s.failed("directory", j.path, err)
		return nil
	}
	d := os.NewFile(uintptr(fd), j.path)
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		w.s.failed("directory", j.path, err)
		return nil
	}
	if !w.first(&st) || !w.enter(&j, fd, &st) {
		return nil
	}
	for {
		entries, err := d.ReadDir(4096)
		w.entries(f, j, st.Dev, fd, entries)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			w.s.failed("directory", j.path, err)
			return nil
		}
		if ctx.Err() != nil {
			return nil // Files reports it
		}
	}
}

// enter decides about a directory on a file system other than its parent's.
func (w *walk) enter(j *dirJob, fd int, st *unix.Stat_t) bool {
	for _, dir := range w.o.Always {
		j.always = j.always || j.path == dir
	}
	if !j.root && st.Dev == j.dev {
		return true
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		w.s.failed("mount", j.path, err)
		return false
	}
	kind := fileSystem(uint32(fs.Type))
	if kind.skip != "" && !j.root {
		w.s.skip("mount", kind.skip, j.path)
		return false
	}
	j.always = j.always || kind.memory
	return true
}

func (w *walk) entries(f *fileReader, j dirJob, dev uint64, fd int, entries []os.DirEntry) {
	var dirs []dirJob
	f.names = f.names[:0]
	for _, e := range entries {
		f.names = append(append(f.names, e.Name()...), 0)
		path := j.path + "/" + e.Name()
		if j.path == "/" {
			path = "/" + e.Name()
		}
		switch kind := e.Type(); {
		case kind.IsDir():
			dirs = append(dirs, dirJob{path: path, dev: dev, always: j.always})
		case kind.IsRegular(), kind&os.ModeSymlink != 0:
			if w.old(fd, e.Name(), j.always) {
				f.count.Unchanged++
			} else if kind.IsRegular() {
				f.file(fd, e.Name(), path)
			} else {
				f.link(fd, e.Name(), path)
			}
		}
	}
	f.searchNames(j.path, f.names)
	if len(dirs) > 0 {
		w.push(dirs...)
	}
}

// old reports whether a file's content can be left out.
func (w *walk) old(fd int, name string, always bool) bool {
	if always || w.o.Since.IsZero() {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false // opening it tells why
	}
	return time.Unix(st.Ctim.Unix()).Before(w.o.Since.Add(-clockSlack))
}

// searchNames searches the NUL-terminated names of one directory.
func (f *fileReader) searchNames(dir string, names []byte) {
	f.count.Names += bytes.Count(names, []byte{0})
	err := f.s.needles.all(names, func(hit *form, from, _ int64) {
		name := names[bytes.LastIndexByte(names[:from], 0)+1:]
		name = name[:bytes.IndexByte(name, 0)]
		f.s.found(hit, 0, Place{Kind: FileName, Path: filepath.Join(dir, string(name))})
	})
	f.s.failed("file name", dir, err)
}
