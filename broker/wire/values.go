// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

const (
	// MaxValues is how many bytes all values of a frame have together: what a guest's
	// systemd takes of one VM (credential.MaxTotal).
	MaxValues = 1 << 20
	// MaxCredentials is how many there are in a frame (credential.MaxFiles).
	MaxCredentials = 1023
)

// Values is a memory file with values, one after the other, to be sent; nil if there are
// none. The caller releases it.
func Values(values []*secret.Value) (*secret.Memfd, error) {
	if len(values) == 0 {
		return nil, nil
	}
	var r secret.Rope
	for _, v := range values {
		if v.Len() > 0 {
			r = append(r, secret.Piece{Secret: v})
		}
	}
	return secret.NewMemfd("vmcred-values", r)
}

// readValues reads what a frame announces, and closes the file. The other side may have
// sent anything: it must be a memory file, which no reading waits for, of just that size.
func readValues(fd int, a *secret.Arena, announced []Credential) ([]*secret.Value, error) {
	if fd < 0 {
		if len(announced) > 0 {
			return nil, errors.New("the values did not come along")
		}
		return nil, nil
	}
	defer closeFile(&fd)
	if len(announced) == 0 {
		return nil, errors.New("values came that nothing was said of")
	}
	if len(announced) > MaxCredentials {
		return nil, fmt.Errorf("%d values are more than %d", len(announced), MaxCredentials)
	}
	total := 0
	for _, c := range announced {
		if c.Bytes < 0 || c.Bytes > MaxValues || total+c.Bytes > MaxValues {
			return nil, fmt.Errorf("the values have more than %d bytes", MaxValues)
		}
		total += c.Bytes
	}
	if err := isMemory(fd, total); err != nil {
		return nil, err
	}
	return split(fd, a, announced)
}

func isMemory(fd, size int) error {
	// Only memory files know seals (memfd_create(2)).
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil {
		return errors.New("the values came in something that is no memory file")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != int64(size) {
		return fmt.Errorf("the values have %d bytes, and %d were announced", st.Size, size)
	}
	return nil
}

// split reads each value at its place: the offset is shared with whoever sent the file.
func split(fd int, a *secret.Arena, announced []Credential) ([]*secret.Value, error) {
	var out []*secret.Value
	at := 0
	for _, c := range announced {
		v, err := a.Make(c.Bytes, func(b []byte) (int, error) { return len(b), readAt(fd, b, int64(at)) })
		if err != nil {
			for _, v := range out {
				v.Wipe()
			}
			return nil, err
		}
		at += c.Bytes
		out = append(out, v)
	}
	return out, nil
}

func readAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("the values became shorter: %w", io.ErrUnexpectedEOF)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}
