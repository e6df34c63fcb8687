// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileReader searches one file after another. It is for one goroutine.
type fileReader struct {
	s      *Search
	max    int64
	stream *stream
	place  Place // of the file that stream searches
	skew   int64 // where in the file the stream's current segment begins
	names  []byte
	attr   []byte
	count  Searched
}

func newFileReader(s *Search, max int64) *fileReader {
	f := &fileReader{s: s, max: max, attr: make([]byte, 64<<10)}
	f.stream = s.needles.newStream(func(hit *form, from, _ int64) { s.found(hit, from+f.skew, f.place) })
	return f
}

// close adds what was searched to the report.
func (f *fileReader) close() {
	clear(f.attr)
	c := f.count
	f.s.count(func(s *Searched) {
		s.Files += c.Files
		s.Names += c.Names
		s.Unchanged += c.Unchanged
		s.Descriptors += c.Descriptors
		s.Bytes += c.Bytes
	})
}

// file searches a regular file's content and extended attributes.
func (f *fileReader) file(dir int, name, path string) {
	fd, err := openQuietly(dir, name)
	if err != nil {
		f.s.failed("file", path, err)
		return
	}
	defer unix.Close(fd)
	f.content(fd, Place{Kind: File, Path: path})
	f.xattrs(fd, path)
	f.count.Files++
}

// openQuietly opens a file for reading without waiting for it or changing its access time.
func openQuietly(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM { // O_NOATIME is for the owner
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	return fd, err
}

// content searches what a descriptor holds, hole by hole skipped.
func (f *fileReader) content(fd int, p Place) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.s.failed(string(p.Kind), p.Path, err)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return // it was replaced since its directory was read
	}
	f.place = p
	var err error
	if st.Blocks*512 >= st.Size && st.Size <= f.max {
		_, err = f.segment(fd, 0, -1)
	} else {
		err = f.sparse(fd, st.Size, p.Path)
	}
	f.s.failed(string(p.Kind), p.Path, err)
}

// sparse searches the data between a file's holes, from the end backwards as
// far as max allows.
func (f *fileReader) sparse(fd int, size int64, path string) error {
	type span struct{ from, to int64 }
	var spans []span
	var data int64
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		spans, data, at = append(spans, span{from, to}), data+to-from, to
	}
	over := data - f.max
	if over > 0 {
		f.s.skip("beginning of a file over the size limit", "only the end was searched", path)
	}
	for _, s := range spans {
		if cut := min(max(over, 0), s.to-s.from); cut > 0 {
			s.from, over = s.from+cut, over-cut
		}
		if _, err := f.segment(fd, s.from, s.to); err != nil {
			return err
		}
	}
	return nil
}

// segment searches bytes [from, to) of a file; to is -1 for all it has.
func (f *fileReader) segment(fd int, from, to int64) (n int64, err error) {
	f.skew = from
	for to < 0 || from+n < to {
		room := f.stream.room()
		if to >= 0 {
			room = room[:min(int64(len(room)), to-from-n)]
		}
		var m int
		if m, err = unix.Pread(fd, room, from+n); err != nil {
			if err == unix.EINTR {
				continue
			}
			break
		}
		if m == 0 {
			break
		}
		n += int64(m)
		if err = f.stream.grew(m); err != nil {
			break
		}
		if to < 0 && n > 2*f.max {
			f.s.skip("end of a file over the size limit", "it grew while it was read", f.place.Path)
			break
		}
	}
	f.count.Bytes += n
	return n, errors.Join(err, f.stream.end())
}

// link searches a symbolic link's target.
func (f *fileReader) link(dir int, name, path string) {
	n, err := unix.Readlinkat(dir, name, f.attr)
	if err == nil {
		err = f.s.needles.all(f.attr[:n], func(hit *form, from, _ int64) {
			f.s.found(hit, from, Place{Kind: Symlink, Path: path})
		})
	}
	f.s.failed("symlink", path, err)
}

// xattrs searches the names and values of a file's extended attributes.
func (f *fileReader) xattrs(fd int, path string) {
	n, err := unix.Flistxattr(fd, f.attr)
	if err != nil {
		if err != unix.ENOTSUP {
			f.s.failed("xattr", path, err)
		}
		return
	}
	if n == 0 {
		return
	}
	names := bytes.Clone(f.attr[:n])
	hit := func(hit *form, from, _ int64) { f.s.found(hit, from, Place{Kind: Xattr, Path: path}) }
	err = f.s.needles.all(names, hit)
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if len(name) == 0 || err != nil {
			continue
		}
		n, gerr := unix.Fgetxattr(fd, string(name), f.attr)
		if gerr == unix.ENODATA {
			continue
		}
		if err = gerr; err == nil {
			err = f.s.needles.all(f.attr[:n], hit)
		}
	}
	f.s.failed("xattr", filepath.Clean(path), err)
}
