// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxLine is the longest message accepted, in bytes with its line end. The
// longest one a start asks for is the greeting, of some 200 bytes.
const MaxLine = 64 << 10

// Event is something the VMM says on its own, as "SHUTDOWN".
type Event struct {
	Name string
	Data json.RawMessage // an object, or nil
}

// Greeting is the first message of a connection.
type Greeting struct {
	Major, Minor, Micro int
}

// CommandError is the VMM's refusal of a command.
type CommandError struct {
	Command string
	Class   string // "GenericError" and others
	Desc    string // in words, as the VMM gives it
}

// Error returns the command and the VMM's own words.
func (e *CommandError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

// message is the union of all that a server sends: exactly one of Greeting,
// Event, Return and Error is set in a valid one.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
	} `json:"QMP"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID *uint64 `json:"id"`
}

var errLong = fmt.Errorf("a message of more than %d bytes", MaxLine)

// readMessage reads one line and decodes it. io.EOF: the peer has closed.
func readMessage(r *bufio.Reader) (*message, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errLong
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		// The decoder's own text may quote the line; it stays out of messages.
		return nil, errors.New("a line that is not a QMP message")
	}
	kinds := 0
	for _, set := range []bool{m.Greeting != nil, m.Event != "", m.Return != nil, m.Error != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, errors.New("a line that is not a QMP message")
	}
	return &m, nil
}
