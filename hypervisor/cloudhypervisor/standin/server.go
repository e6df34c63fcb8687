// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const (
	maxBody        = 51_200
	maxConnections = 10
	chunk          = 1024 // what the real server reads at once, and its longest header
)

// server is the HTTP server: requests of all connections wait for each other.
type server struct {
	vmm      *vmm
	listener net.Listener

	mu   sync.Mutex // held while a request is worked on
	open chan struct{}
}

func newServer(v *vmm, l net.Listener) *server {
	return &server{vmm: v, listener: l, open: make(chan struct{}, maxConnections)}
}

func (s *server) serve() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		select {
		case s.open <- struct{}{}:
			go func() {
				(&connection{server: s, c: c.(*net.UnixConn)}).run()
				_ = c.Close()
				<-s.open
			}()
		default:
			const text = `{ "error": "Too many open connections" }`
			fmt.Fprintf(c, "HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			_ = c.Close()
		}
	}
}

// request is one of the API, complete.
type request struct {
	method, path string
	length       int
	body         []byte
	files        []*os.File
}

// connection reads requests in chunks, as the real one does: an error drops what
// was read with it.
type connection struct {
	server *server
	c      *net.UnixConn
	buf    []byte
	files  []*os.File
	r      *request // its first line was read
	inBody bool
	stuck  bool // a header was refused: whatever follows is read as headers
}

func (c *connection) run() {
	part, oob := make([]byte, chunk), make([]byte, 512)
	for {
		n, oobn, _, _, err := c.c.ReadMsgUnix(part, oob)
		if err != nil || n == 0 {
			return
		}
		c.take(oob[:oobn])
		c.buf = append(c.buf, part[:n]...)
		complete, bad := c.parse()
		if bad != "" {
			c.refuse(bad)
			continue
		}
		for _, r := range complete {
			answer := c.server.work(r)
			_, _ = c.c.Write(answer.bytes())
			if answer.after != nil {
				answer.after()
			}
		}
	}
}

// take keeps descriptors for the request they came with.
func (c *connection) take(oob []byte) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, _ := syscall.ParseUnixRights(&m)
		for _, fd := range fds {
			c.files = append(c.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
}

// refuse is the server's own answer, before any request is looked at.
func (c *connection) refuse(why string) {
	c.buf = nil
	text := `{ "error": "` + why + "\nAll previous unanswered requests will be dropped.\" }"
	fmt.Fprintf(c.c, "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
}

// parse takes complete requests off the buffer, or says why there are none.
func (c *connection) parse() (complete []*request, bad string) {
	for {
		if c.inBody {
			if len(c.buf) < c.r.length {
				return complete, ""
			}
			c.r.body, c.buf = bytes.Clone(c.buf[:c.r.length]), c.buf[c.r.length:]
			complete = append(complete, c.finish())
			continue
		}
		line, rest, found := bytes.Cut(c.buf, []byte("\r\n"))
		if !found {
			if len(c.buf) >= chunk {
				return nil, "Invalid header. Reason: Invalid content length. Header: " + string(c.buf)
			}
			return complete, ""
		}
		c.buf = rest
		if bad = c.line(string(line)); bad != "" {
			return nil, bad
		}
		switch {
		case len(line) > 0:
		case c.r.length == 0:
			complete = append(complete, c.finish())
		default:
			c.inBody = true
		}
	}
}

func (c *connection) finish() *request {
	r := c.r
	r.files, c.files = c.files, nil
	c.r, c.inBody = nil, false
	return r
}

// line is a request's first line or one of its headers.
func (c *connection) line(line string) (bad string) {
	if c.stuck && line == "" {
		return "Invalid request."
	}
	if c.r == nil && !c.stuck {
		return c.first(line)
	}
	if line == "" {
		return ""
	}
	if bad = c.header(line); bad != "" {
		c.r, c.stuck = nil, true
	}
	return bad
}

func (c *connection) first(line string) (bad string) {
	words := strings.Split(line, " ")
	if len(words) != 3 {
		return "Invalid request."
	}
	path := words[1]
	if rest, ok := strings.CutPrefix(path, "http://"); ok {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	switch {
	case words[0] != "GET" && words[0] != "PUT" && words[0] != "PATCH":
		return "Invalid HTTP Method: Unsupported HTTP method."
	case words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0":
		return "Invalid HTTP Version: Unsupported HTTP version."
	}
	c.r = &request{method: words[0], path: path}
	return ""
}

func (c *connection) header(line string) (bad string) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || c.stuck {
		return "Invalid header. Reason: Header is incorrectly formatted. Key: " + line
	}
	if !strings.EqualFold(name, "Content-Length") {
		return ""
	}
	value = strings.TrimSpace(value)
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return "Invalid header. Reason: Invalid value. Key:Content-Length; Value: " + value
	}
	if n > maxBody {
		return fmt.Sprintf("Request payload with size %d is larger than the limit of %d allowed by server.", n, maxBody)
	}
	c.r.length = int(n)
	return ""
}

// answer is a response, and what happens once it was written.
type answer struct {
	status int
	body   string
	text   bool // with a body, be it empty
	after  func()
}

func (a answer) bytes() []byte {
	head := fmt.Sprintf("HTTP/1.1 %d \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n", a.status)
	if !a.text {
		return []byte(head + "\r\n")
	}
	return fmt.Appendf(nil, "%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", head, len(a.body), a.body)
}

func (s *server) work(r *request) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vmm.handle(r)
}
