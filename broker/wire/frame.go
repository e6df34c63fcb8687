// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

// Sender is who sent a frame, by the kernel's word (unix(7), SCM_CREDENTIALS).
type Sender struct {
	PID int
	UID uint32
}

// Identify has the kernel say, with every frame that is sent to c from now on, who sent
// it.
func Identify(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, serr)
}

// Send writes one frame, and the descriptor of its values with it; values may be nil. The
// memory file has to stay as it is until the other side has read it: a broker's until the
// runner closes (AwaitClose), a runner's until the answer is there.
func Send(c *net.UnixConn, message any, values *secret.Memfd) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("a message of %d bytes is longer than %d", len(body), MaxFrame)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	frame = append(frame, body...)
	if values == nil {
		_, err = c.Write(frame)
		return err
	}
	f := values.File()
	if f == nil {
		return secret.ErrWiped
	}
	// The descriptor goes with the first byte; a part of the rest may go with it.
	n, _, err := c.WriteMsgUnix(frame, unix.UnixRights(int(f.Fd())), nil)
	if err != nil || n == len(frame) { // who has it all may be gone by now
		return err
	}
	_, err = c.Write(frame[n:])
	return err
}

// ReceiveHello reads the broker's first frame.
func ReceiveHello(c *net.UnixConn) error {
	var h Hello
	if _, err := receive(c, &h, nil, MaxSmall); err != nil {
		return err
	}
	return protocol(h.Protocol)
}

func protocol(n int) error {
	if n != Protocol {
		return &VersionError{Other: n}
	}
	return nil
}

// VersionError is another side of another version.
type VersionError struct{ Other int }

// Error names both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("it speaks version %d of the protocol, and this is version %d", e.Other, Protocol)
}

// ReceiveRequest reads a runner's request of at most max bytes, and its values into the
// arena: one for each credential, or none; without an arena none may come. The sender is
// known if Identify was called before the runner could send; else its PID is 0.
func ReceiveRequest(c *net.UnixConn, a *secret.Arena, max int) (*Request, []*secret.Value, Sender, error) {
	var r Request
	got, err := receive(c, &r, a, max)
	if err == nil {
		err = protocol(r.Protocol)
	}
	if err != nil {
		return nil, nil, Sender{}, err
	}
	values, err := readValues(got.file, a, r.Credentials)
	if err != nil {
		return nil, nil, Sender{}, err
	}
	return &r, values, got.sender, nil
}

// ReceiveAnswer reads the broker's answer, and its values into the arena: one for each
// credential, or none.
func ReceiveAnswer(c *net.UnixConn, a *secret.Arena) (*Answer, []*secret.Value, error) {
	var r Answer
	got, err := receive(c, &r, a, MaxFrame)
	if err != nil {
		return nil, nil, err
	}
	values, err := readValues(got.file, a, r.Credentials)
	if err != nil {
		return nil, nil, err
	}
	return &r, values, nil
}

// AwaitClose returns when the other side has closed, which it does when it has read the
// values. What it says instead is an error.
func AwaitClose(c *net.UnixConn) error {
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errors.New("it said more than it was asked")
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return nil
	}
	return err
}

// frame is what came with a frame beside its text.
type frame struct {
	file   int // of the values; -1: none
	sender Sender
}

// receive reads one frame of at most max bytes. Without an arena no values may come with
// it. The descriptor is the caller's, unless there is an error.
func receive(c *net.UnixConn, to any, a *secret.Arena, max int) (got frame, err error) {
	got.file = -1
	defer func() {
		if err != nil {
			closeFile(&got.file)
		}
	}()
	head := make([]byte, 4)
	n, err := got.first(c, head, a != nil)
	if err != nil {
		return got, err
	}
	if got.file >= 0 && a == nil {
		return got, errors.New("a descriptor came where none belongs")
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return got, cut(err)
	}
	size := binary.BigEndian.Uint32(head)
	if int64(size) > int64(max) {
		return got, fmt.Errorf("a message of %d bytes is longer than %d", size, max)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return got, cut(err)
	}
	return got, decode(body, to)
}

// decode reads JSON that has nothing in it that is not known.
func decode(body []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(to)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more than one message")
		}
	}
	if err != nil {
		return fmt.Errorf("no message of vmcred's: %w", err)
	}
	return nil
}

// List is what there are at most MaxCredentials of: a frame of empty entries would else
// become a hundred times as long in memory.
type List[T any] []T

// UnmarshalJSON reads a list that is not too long, and has nothing in it that is not known.
func (l *List[T]) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	switch t, err := d.Token(); {
	case err != nil:
		return err
	case t == nil: // null
		return nil
	case t != json.Delim('['):
		return errors.New("a list is missing")
	}
	var out List[T]
	for d.More() {
		if len(out) == MaxCredentials {
			return fmt.Errorf("a list has more than %d entries", MaxCredentials)
		}
		var one T
		if err := d.Decode(&one); err != nil {
			return err
		}
		out = append(out, one)
	}
	*l = out
	return nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("closed in the middle of a message")
	}
	return err
}

// ErrClosed is another side that closed before it said anything.
var ErrClosed = errors.New("closed without a word")

// first reads the frame's first bytes and what the kernel sends along.
func (f *frame) first(c *net.UnixConn, head []byte, values bool) (int, error) {
	// Room for the credentials, and for one descriptor where values may come; the kernel lets
	// go of what does not fit. To close one of a file system of the peer's own could hang.
	room := unix.CmsgSpace(unix.SizeofUcred)
	if values {
		room += unix.CmsgSpace(4)
	}
	oob := make([]byte, room)
	n, oobn, flags, _, err := c.ReadMsgUnix(head, oob)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	messages, perr := unix.ParseSocketControlMessage(oob[:oobn])
	if perr != nil {
		return 0, perr
	}
	var files []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return 0, err
			}
			files = append(files, fds...)
		case unix.SCM_CREDENTIALS:
			cred, err := unix.ParseUnixCredentials(&m)
			if err != nil {
				return 0, err
			}
			f.sender = Sender{PID: int(cred.Pid), UID: cred.Uid}
		}
	}
	switch {
	case len(files) > 1 || flags&unix.MSG_CTRUNC != 0:
		for i := range files {
			closeFile(&files[i])
		}
		return 0, errors.New("a descriptor too many came along")
	case len(files) == 1:
		f.file = files[0]
	}
	if n == 0 {
		closeFile(&f.file)
		return 0, ErrClosed
	}
	return n, nil
}

func closeFile(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd) // only read from: nothing to lose
		*fd = -1
	}
}
