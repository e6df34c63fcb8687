// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIOV is IOV_MAX: what writev(2) takes at once.
const maxIOV = 1024

// Piece is a part of a [Rope]: public text, or a value. At most one is set.
type Piece struct {
	Text   string
	Secret *Value
}

// Rope is a text with secret values in it that is never put together in memory.
type Rope []Piece

// Len returns the length in bytes. Wiped values count as 0.
func (r Rope) Len() int {
	n := 0
	for _, p := range r {
		n += len(p.Text) + p.Secret.Len()
	}
	return n
}

// WriteTo writes all pieces with writev(2), which copies nothing in this
// process. Nothing is written when a value was wiped; on another error the
// number of bytes says how far it came.
func (r Rope) WriteTo(f *os.File) (int64, error) {
	var written int64
	err := r.use(func(bufs [][]byte) error {
		conn, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var werr error
		err = conn.Write(func(fd uintptr) bool {
			for len(bufs) > 0 {
				n, err := unix.Writev(int(fd), bufs[:min(len(bufs), maxIOV)])
				switch {
				case errors.Is(err, unix.EINTR):
					continue
				case errors.Is(err, unix.EAGAIN):
					return false
				case err != nil:
					werr = fmt.Errorf("writing to %s: %w", f.Name(), err)
					return true
				}
				written += int64(n)
				bufs = advance(bufs, n)
			}
			return true
		})
		return errors.Join(err, werr)
	})
	return written, err
}

// advance drops the first n bytes.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// use calls f with the pieces that are not empty, all pinned.
func (r Rope) use(f func([][]byte) error) error {
	bufs := make([][]byte, 0, len(r))
	pinned := make([]*slot, 0, len(r))
	defer func() {
		for _, s := range pinned {
			s.unpin()
		}
	}()
	for i, p := range r {
		switch {
		case p.Secret == nil && p.Text != "":
			// Only read: writev(2) takes a pointer to a const.
			bufs = append(bufs, unsafe.Slice(unsafe.StringData(p.Text), len(p.Text)))
		case p.Secret == nil:
		case p.Text != "":
			return fmt.Errorf("piece %d of a rope is both text and a secret", i)
		case p.Secret.s == nil:
			return ErrWiped
		default:
			if err := p.Secret.s.pin(); err != nil {
				return err
			}
			pinned = append(pinned, p.Secret.s)
			if b := p.Secret.s.bytes(); len(b) > 0 {
				bufs = append(bufs, b)
			}
		}
	}
	return f(bufs)
}
