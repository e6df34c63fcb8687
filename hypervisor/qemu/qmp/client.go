// SPDX-License-Identifier: Apache-2.0

// Package qmp speaks the QEMU Machine Protocol over a connected stream:
// greeting, commands with ids, events. Its reference is docs/interop/qmp-spec
// in QEMU's tree. It starts no process and knows no command's meaning.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// ErrClosed says that the VMM has closed the connection, or that Close was called.
var ErrClosed = errors.New("the QMP connection is closed")

// writeLimit bounds one command's write to a peer that does not read. Commands
// are shorter than any socket's buffer, so only a broken peer meets it.
const writeLimit = 5 * time.Second

// Client is one QMP connection. All methods are safe for concurrent use.
type Client struct {
	conn     net.Conn
	events   func(Event)
	greeting chan Greeting
	done     chan struct{} // closed when the reader has ended; err is set before

	mu      sync.Mutex // guards what follows
	next    uint64
	pending map[uint64]chan *message
	err     error
}

// New takes over a connection and starts to read it. Each event is passed to
// the function in order, on the reader's goroutine: it must not block and must
// not call Execute. Close ends the reader.
func New(conn net.Conn, events func(Event)) *Client {
	c := &Client{
		conn: conn, events: events,
		greeting: make(chan Greeting, 1),
		done:     make(chan struct{}),
		pending:  make(map[uint64]chan *message),
	}
	go c.read()
	return c
}

// Done is closed when the connection has ended and every event was passed on.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended: ErrClosed, or what was wrong with what
// the peer sent. It is nil before Done is closed.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and returns when the reader is gone. It may be
// called more than once.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Greeting waits for the first message. It may be called once.
func (c *Client) Greeting(ctx context.Context) (Greeting, error) {
	select {
	case g := <-c.greeting:
		return g, nil
	case <-c.done:
		select {
		case g := <-c.greeting:
			return g, nil
		default:
			return Greeting{}, c.Err()
		}
	case <-ctx.Done():
		return Greeting{}, ctx.Err()
	}
}

// Execute runs a command without arguments and waits for its answer. A refusal
// is a *CommandError; ErrClosed means that no answer can come any more.
func (c *Client) Execute(ctx context.Context, command string) (json.RawMessage, error) {
	id, answer, err := c.register()
	if err != nil {
		return nil, err
	}
	defer c.forget(id)
	line := fmt.Appendf(nil, "{\"execute\":%q,\"id\":%d}\n", command, id)
	if err := c.write(line); err != nil {
		return nil, err
	}
	select {
	case m := <-answer:
		return result(command, m)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		// The answer may have been the last thing that was read.
		select {
		case m := <-answer:
			return result(command, m)
		default:
			return nil, c.Err()
		}
	}
}

func result(command string, m *message) (json.RawMessage, error) {
	if m.Error != nil {
		return nil, &CommandError{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	return m.Return, nil
}

func (c *Client) register() (uint64, chan *message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.next++
	answer := make(chan *message, 1)
	c.pending[c.next] = answer
	return c.next, answer, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) write(line []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return ErrClosed
	}
	if _, err := c.conn.Write(line); err != nil {
		// The reader knows better why: what the peer said last, or that it left.
		return ErrClosed
	}
	return nil
}

func (c *Client) read() {
	defer close(c.done)
	r := bufio.NewReaderSize(c.conn, MaxLine)
	err := c.readAll(r)
	if isClosed(err) {
		err = ErrClosed
	} else {
		err = fmt.Errorf("QMP: %w", err)
	}
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	_ = c.conn.Close()
}

// isClosed tells a connection's end from a fault in what was read. A peer that
// dies with a command unread resets the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET)
}

func (c *Client) readAll(r *bufio.Reader) error {
	greeted := false
	for {
		m, err := readMessage(r)
		if err != nil {
			return err
		}
		switch {
		case m.Greeting != nil:
			if greeted {
				return errors.New("a second greeting")
			}
			greeted = true
			v := m.Greeting.Version.QEMU
			c.greeting <- Greeting{Major: v.Major, Minor: v.Minor, Micro: v.Micro}
		case m.Event != "":
			c.events(Event{Name: m.Event, Data: m.Data})
		default:
			c.answer(m)
		}
	}
}

// answer hands a reply to whoever waits for it. One that nobody waits for any
// more is dropped, and so is one without an id: a server sends that only to a
// line it could not parse.
func (c *Client) answer(m *message) {
	if m.ID == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.pending[*m.ID]; ok {
		delete(c.pending, *m.ID)
		answer <- m
	}
}
