// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

// pair is a client and the VMM's end of its connection.
func pair(t testing.TB) (*Client, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "vmm")
	conn, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	c := New(os.NewFile(uintptr(fds[0]), "api"))
	t.Cleanup(func() { _, _ = c.Close(), conn.Close() })
	return c, conn
}

// serve answers requests as Go's own server reads them: a second opinion on
// what is HTTP.
func serve(t *testing.T, conn net.Conn, h http.HandlerFunc) {
	t.Helper()
	l := &once{conns: make(chan net.Conn, 1)}
	l.conns <- conn
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// once is a listener with one connection.
type once struct{ conns chan net.Conn }

func (l *once) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, io.EOF
}
func (l *once) Close() error   { close(l.conns); return nil }
func (l *once) Addr() net.Addr { return &net.UnixAddr{} }

func value(t *testing.T, text string) *secret.Value {
	t.Helper()
	v, err := secret.Make(len(text), func(b []byte) (int, error) { return copy(b, text), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Wipe)
	return v
}

func TestRequests(t *testing.T) {
	c, conn := pair(t)
	var seen []string
	serve(t, conn, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen = append(seen, r.Method+" "+r.URL.Path+" "+string(b))
		switch r.URL.Path {
		case "/api/v1/vmm.ping":
			_, _ = io.WriteString(w, `{"version":"53.0.0"}`)
		case "/api/v1/vm.boot":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `["Error from API","The VM could not boot","No such file"]`)
		case "/api/v1/vm.create":
			if len(b) > 100 {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write(b) // as the real one repeats what it cannot read
				return
			}
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	ctx := t.Context()
	if b, err := c.Get(ctx, "vmm.ping"); err != nil || !strings.Contains(string(b), "53.0.0") {
		t.Errorf("ping: %s, %v", b, err)
	}
	body := secret.Rope{{Text: `{"a":"`}, {Secret: value(t, "c2VjcmV0")}, {Text: `"}`}}
	if err := c.Put(ctx, "vm.create", body); err != nil {
		t.Error(err)
	}
	err := c.Do(ctx, "vm.boot")
	var status *StatusError
	if !errors.As(err, &status) || status.Status != 500 || status.Text != "Error from API: The VM could not boot: No such file" {
		t.Errorf("boot: %v", err)
	}
	// After a refusal the connection is as good as before.
	const canary = "CANARYCANARYCANARY"
	err = c.Put(ctx, "vm.create", secret.Rope{{Secret: value(t, strings.Repeat(canary, 10))}})
	if !errors.As(err, &status) || status.Status != 400 || strings.Contains(err.Error(), canary) {
		t.Errorf("a body that is refused: %v", err)
	}
	if err := c.Do(ctx, "vm.power-button"); err != nil {
		t.Error(err)
	}
	want := []string{"GET /api/v1/vmm.ping ", `PUT /api/v1/vm.create {"a":"c2VjcmV0"}`, "PUT /api/v1/vm.boot "}
	for i, w := range want {
		if seen[i] != w {
			t.Errorf("request %d is %q, want %q", i, seen[i], w)
		}
	}
	for _, b := range [][]byte{c.buffer()} {
		if strings.Contains(string(b), "CANARY") {
			t.Error("the refused body's echo is still in the reader's buffer")
		}
	}
}

// buffer shows what the reader's buffer holds.
func (c *Client) buffer() []byte {
	c.r.Reset(nothing{})
	b, _ := c.r.Peek(c.r.Size())
	return b
}

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { return len(p), nil } // leaves what was there

func TestEnds(t *testing.T) {
	t.Run("the VMM goes", func(t *testing.T) {
		c, conn := pair(t)
		go func() { _, _ = conn.Read(make([]byte, 10)); _ = conn.Close() }()
		if err := c.Do(t.Context(), "vm.boot"); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if err := c.Do(t.Context(), "vm.boot"); !errors.Is(err, ErrClosed) {
			t.Errorf("afterwards: %v", err)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		c, _ := pair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, "vm.boot"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		// The late answer would be taken for the next one's.
		if err := c.Do(t.Context(), "vm.boot"); !errors.Is(err, ErrClosed) {
			t.Errorf("afterwards: %v", err)
		}
	})
	t.Run("nobody reads", func(t *testing.T) {
		c, _ := pair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := c.Put(ctx, "vm.create", secret.Rope{{Text: strings.Repeat("x", 8<<20)}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled before", func(t *testing.T) {
		c, conn := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Do(ctx, "vm.boot"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		serve(t, conn, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		if err := c.Do(t.Context(), "vm.boot"); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// FuzzAnswer: whatever a VMM says, a request ends, and takes no more memory than
// an answer may have.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 204 \r\nServer: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 400 \r\ncontent-length: 5\r\n\r\n[\"a\"]",
		"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
		"hello\n", "", "HTTP/1.1 \n\n", "HTTP/9 200\n\n", strings.Repeat("a: b\r\n", 100),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		c, conn := pair(t)
		go func() {
			_, _ = conn.Write(said)
			_ = conn.Close()
		}()
		b, err := c.Get(t.Context(), "vmm.ping")
		var status *StatusError
		if err != nil && !errors.Is(err, ErrClosed) && !errors.As(err, &status) {
			t.Fatalf("%v", err)
		}
		if len(b) > maxBody || len(b) > len(said) {
			t.Fatalf("%d bytes of an answer of %d", len(b), len(said))
		}
	})
}

func TestEvents(t *testing.T) {
	var stream strings.Builder
	for _, name := range []string{"starting", "booting", "booted", "shutdown"} {
		b, err := json.MarshalIndent(map[string]any{"timestamp": map[string]int{"secs": 0}, "source": "vm", "event": name, "properties": nil}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(append(b, '\n', '\n'))
	}
	var got []string
	Events(strings.NewReader(stream.String()+"not JSON"), func(e Event) { got = append(got, e.String()) })
	if want := "vm:starting vm:booting vm:booted vm:shutdown"; strings.Join(got, " ") != want {
		t.Errorf("%q", got)
	}
	endless := io.MultiReader(strings.NewReader(`{"source":"`), &letters{n: 100 << 20})
	Events(endless, func(e Event) { t.Errorf("an event of %d bytes", len(e.Source)) })
}

// letters is a long text.
type letters struct{ n int }

func (l *letters) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = 'a'
	}
	l.n -= len(p)
	return len(p), nil
}

// A context that ends just as its answer has come does not end the next request.
func TestAContextThatEndsLate(t *testing.T) {
	c, conn := pair(t)
	serve(t, conn, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		stop := c.limit(ctx)
		cancel()
		stop()
		if err := c.Do(t.Context(), "vm.power-button"); err != nil {
			t.Fatal(err)
		}
	}
}
