// SPDX-License-Identifier: Apache-2.0

// Package api speaks cloud-hypervisor's HTTP API over one connection: small
// requests and answers, and bodies that hold secrets, which are never put
// together in this process's memory.
package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmcred/vmcred/secret"
)

// maxBody is how much of an answer is read, in bytes: vm.info of a large VM has
// some ten thousand.
const maxBody = 1 << 20

// maxHeaders is how many headers an answer may have; there are four.
const maxHeaders = 32

// ErrClosed is a connection that is of no use any more: the VMM is gone, or a
// request was given up half-way.
var ErrClosed = errors.New("the connection to cloud-hypervisor's API is closed")

// StatusError is an answer other than 200 and 204.
type StatusError struct {
	Path   string // "vm.boot"
	Status int    // 400, 500, …
	Text   string // what the VMM says; empty for a request that held values
}

// Error implements error.
func (e *StatusError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s was refused with status %d", e.Path, e.Status)
	}
	return fmt.Sprintf("%s was refused: %s", e.Path, e.Text)
}

// Client is one keep-alive connection. Requests wait for each other.
type Client struct {
	f *os.File
	r *bufio.Reader

	mu     sync.Mutex // guards what follows, and the connection
	closed bool
}

// New takes over a connected, non-blocking unix socket.
func New(f *os.File) *Client { return &Client{f: f, r: bufio.NewReader(f)} }

// Close gives the connection up. A request that waits for its answer ends with
// ErrClosed.
func (c *Client) Close() error { return c.f.Close() }

// Get asks for something and returns the body.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	return c.do(ctx, request{method: "GET", path: path})
}

// Do is an action without a body.
func (c *Client) Do(ctx context.Context, path string) error {
	_, err := c.do(ctx, request{method: "PUT", path: path})
	return err
}

// Put sends a JSON body, which may hold values. What the VMM answers to a body
// that it cannot read may repeat a part of it, so that text is not kept.
func (c *Client) Put(ctx context.Context, path string, body secret.Rope) error {
	_, err := c.do(ctx, request{method: "PUT", path: path, body: body})
	return err
}

// PutFiles sends a JSON body that holds no value, and descriptors with it
// (SCM_RIGHTS in unix(7)). The files stay the caller's.
func (c *Client) PutFiles(ctx context.Context, path string, body []byte, files ...*os.File) error {
	_, err := c.do(ctx, request{method: "PUT", path: path, body: secret.Rope{{Text: string(body)}}, files: files})
	return err
}

type request struct {
	method, path string
	body         secret.Rope
	files        []*os.File
}

func (r request) rope() secret.Rope {
	head := r.method + " /api/v1/" + r.path + " HTTP/1.1\r\nHost: localhost\r\n"
	if r.body != nil {
		// Only a length: cloud-hypervisor knows no chunks.
		head += "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(r.body.Len()) + "\r\n"
	}
	return append(secret.Rope{{Text: head + "\r\n"}}, r.body...)
}

func (c *Client) do(ctx context.Context, r request) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stop := c.limit(ctx)
	defer stop()
	body, err := c.exchange(r)
	var status *StatusError
	if err == nil || errors.As(err, &status) {
		return body, err
	}
	// Half of a request or of an answer is on the way: nothing fits any more.
	c.closed = true
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w (%s: %w)", ErrClosed, r.path, err)
}

// limit makes reading and writing end with the context. After stop there is no limit,
// also if the context ended just as the answer came: the next request has its own.
func (c *Client) limit(ctx context.Context) (stop func()) {
	over := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(over)
		_ = c.f.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-over
		}
		_ = c.f.SetDeadline(time.Time{})
	}
}

func (c *Client) exchange(r request) ([]byte, error) {
	if err := c.send(r); err != nil {
		return nil, err
	}
	status, body, err := c.answer(r.body != nil)
	switch {
	case err != nil:
		return nil, err
	case status == 200 || status == 204:
		return body, nil
	}
	return nil, &StatusError{Path: r.path, Status: status, Text: words(body)}
}

func (c *Client) send(r request) error {
	rope := r.rope()
	if len(r.files) == 0 {
		_, err := rope.WriteTo(c.f)
		return err
	}
	var public []byte
	for _, p := range rope {
		public = append(public, p.Text...)
	}
	n, err := sendFiles(c.f, public, r.files)
	if err == nil && n < len(public) {
		_, err = c.f.Write(public[n:])
	}
	return err
}

// answer reads one response. With forget the body is read and wiped.
func (c *Client) answer(forget bool) (int, []byte, error) {
	status, length, err := c.head()
	if err != nil {
		return 0, nil, err
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return 0, nil, err
	}
	if forget {
		clear(body)
		c.wipe()
		return status, nil, nil
	}
	return status, body, nil
}

// head reads the status line and the headers, of which one matters.
func (c *Client) head() (status, length int, err error) {
	line, err := c.line()
	if err != nil {
		return 0, 0, err
	}
	proto, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(proto, "HTTP/1.") {
		return 0, 0, errors.New("the answer is not HTTP")
	}
	for range maxHeaders {
		if line, err = c.line(); err != nil || line == "" {
			return status, length, err
		}
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(name, "Content-Length") {
			continue
		}
		length, err = strconv.Atoi(strings.TrimSpace(value))
		if err != nil || length < 0 || length > maxBody {
			return 0, 0, fmt.Errorf("an answer of %q bytes", value)
		}
	}
	return 0, 0, errors.New("an answer with too many headers")
}

// line reads a line that fits the reader's buffer: a VMM that was taken over
// must not make this process grow.
func (c *Client) line() (string, error) {
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// wipe overwrites the reader's buffer, which nothing else is in between answers.
func (c *Client) wipe() {
	c.r.Reset(zeros{})
	_, _ = c.r.Peek(c.r.Size())
	c.r.Reset(c.f)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// words takes the text out of an error's body: ["…", "…"], the cause last.
func words(body []byte) string {
	text := strings.TrimSpace(string(body))
	text = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]")
	var out []string
	for part := range strings.SplitSeq(text, `","`) {
		out = append(out, strings.Trim(part, `" `))
	}
	return strings.Join(out, ": ")
}
