// SPDX-License-Identifier: Apache-2.0

package standin_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/standin"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// patience ends a test that would hang. No outcome depends on it.
const patience = time.Minute

// shortWait is how long the stand-in waits for a vhost-user socket here.
const shortWait = 300 * time.Millisecond

// TestMain is also the stand-in.
func TestMain(m *testing.M) {
	if standin.IsCall(os.Args) {
		os.Exit(standin.Main(os.Args[1:], standin.Options{VhostWait: shortWait}))
	}
	os.Exit(m.Run())
}

// program is a cloud-hypervisor, real or not.
type program struct {
	path, kernel string
	real         bool
}

// onBoth runs a test on the stand-in, and on the real program where it works.
func onBoth(t *testing.T, f func(t *testing.T, p program)) {
	t.Run("stand-in", func(t *testing.T) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		kernel := filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(kernel, []byte("\x7fELF, as far as anyone looks"), 0o600); err != nil {
			t.Fatal(err)
		}
		f(t, program{path: self, kernel: kernel})
	})
	t.Run("real", func(t *testing.T) {
		path, err := exec.LookPath("cloud-hypervisor")
		if err != nil {
			t.Skip("SKIPPED, the stand-in is not compared with anything: needs cloud-hypervisor v53 on PATH")
		}
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			t.Skipf("SKIPPED, the stand-in is not compared with anything: cloud-hypervisor needs KVM: %v", err)
		}
		_ = kvm.Close()
		f(t, program{path: path, kernel: probe.Build(t), real: true})
	})
}

// stream keeps what comes out of a pipe and lets a test wait for a part of it.
type stream struct {
	r       *os.File
	mu      sync.Mutex
	all     bytes.Buffer
	changed chan struct{} // closed and replaced at each change
	ended   chan struct{}
}

func read(r *os.File) *stream {
	s := &stream{r: r, changed: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_, _ = io.Copy(s, r)
		_ = r.Close()
	}()
	return s
}

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	return s.all.Write(b)
}

func (s *stream) text() (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.String(), s.changed
}

func (s *stream) await(t *testing.T, text string) {
	t.Helper()
	s.awaitTimes(t, text, 1)
}

func (s *stream) awaitTimes(t *testing.T, text string, n int) {
	t.Helper()
	for limit := time.After(patience); ; {
		all, changed := s.text()
		if strings.Count(all, text) >= n {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("no %q in %q", text, all)
		}
	}
}

// machine is one process, started as the driver does it.
type machine struct {
	program
	cmd            *exec.Cmd
	conns          []*net.UnixConn
	readers        []*bufio.Reader
	serial, events *stream
	said           *bytes.Buffer
	exited         chan error
	dir            string
}

// serialFile is what the child finds its serial port under (the third of ExtraFiles).
const serialFile = "/proc/self/fd/5"

func start(t *testing.T, p program, connections int) *machine {
	t.Helper()
	m := &machine{program: p, said: new(bytes.Buffer), exited: make(chan error, 1), dir: t.TempDir()}
	path := filepath.Join(m.dir, "api")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	for range connections {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		m.conns, m.readers = append(m.conns, c), append(m.readers, bufio.NewReader(c))
	}
	listener, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close() // also removes the path
	er, ew := pipe(t)
	sr, sw := pipe(t)
	m.events, m.serial = read(er), read(sr)
	m.cmd = exec.Command(p.path, "--api-socket", "fd=3", "--event-monitor", "fd=4")
	m.cmd.ExtraFiles = []*os.File{listener, ew, sw}
	m.cmd.Stderr = m.said
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range m.cmd.ExtraFiles {
		_ = f.Close()
	}
	go func() { m.exited <- m.cmd.Wait() }()
	t.Cleanup(func() { _ = m.cmd.Process.Kill() })
	return m
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// reply is an answer of the API.
type reply struct {
	status int
	body   string
	header http.Header
}

// fill replaces the words that stand for this machine's files.
func (m *machine) fill(s string) string {
	return strings.NewReplacer("KERNEL", m.kernel, "SERIAL", serialFile, "DIR", m.dir).Replace(s)
}

// ask sends a request over the first connection and reads the answer.
func (m *machine) ask(t *testing.T, method, path, body string, files ...*os.File) reply {
	t.Helper()
	body = m.fill(body)
	head := fmt.Sprintf("%s /api/v1/%s HTTP/1.1\r\nHost: localhost\r\n", method, path)
	if body != "" {
		head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	m.send(t, 0, head+"\r\n"+body, files...)
	return m.answer(t, 0)
}

func (m *machine) send(t *testing.T, conn int, text string, files ...*os.File) {
	t.Helper()
	var oob []byte
	for _, f := range files {
		oob = append(oob, syscall.UnixRights(int(f.Fd()))...)
	}
	if _, _, err := m.conns[conn].WriteMsgUnix([]byte(text), oob, nil); err != nil {
		t.Fatalf("%.40q: %v", text, err)
	}
}

func (m *machine) answer(t *testing.T, conn int) reply {
	t.Helper()
	_ = m.conns[conn].SetReadDeadline(time.Now().Add(patience + 30*time.Second))
	res, err := http.ReadResponse(m.readers[conn], nil)
	if err != nil {
		t.Fatalf("no answer: %v (%s)", err, m.said)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{res.StatusCode, string(b), res.Header}
}

// kinds reads the events there are, as "vm:booted", and checks their form.
func (m *machine) kinds(t *testing.T) []string {
	t.Helper()
	<-m.events.ended
	all, _ := m.events.text()
	if m.real && strings.HasSuffix(all, "\n}") {
		all += "\n\n" // a second write(2), which it may not come to as it exits
	}
	var out []string
	for text := range strings.SplitAfterSeq(all, "\n\n") {
		if text == "" {
			continue
		}
		var e struct {
			Timestamp  struct{ Secs, Nanos *int64 }
			Source     string
			Event      string
			Properties *map[string]string
		}
		if err := json.Unmarshal([]byte(text), &e); err != nil || e.Timestamp.Secs == nil || e.Timestamp.Nanos == nil {
			t.Errorf("event %q: %v", text, err)
		}
		if !strings.HasPrefix(text, "{\n  \"timestamp\": {\n    \"secs\": ") || !strings.HasSuffix(text, "\n}\n\n") {
			t.Errorf("the form of event %q", text)
		}
		out = append(out, e.Source+":"+e.Event)
	}
	return out
}

// end waits for the process's end by itself.
func (m *machine) end(t *testing.T) (code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case err := <-m.exited:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return m.cmd.ProcessState.ExitCode()
	case <-ctx.Done():
		t.Fatalf("the process does not end; events %v", m.cmd.Process.Pid)
		return -1
	}
}

// alive fails the test if the process has ended.
func (m *machine) alive(t *testing.T) {
	t.Helper()
	if r := m.ask(t, "GET", "vmm.ping", ""); r.status != 200 {
		t.Errorf("ping: %+v", r)
	}
}

// finish stops the process by its API and checks all of its events.
func (m *machine) finish(t *testing.T, events ...string) {
	t.Helper()
	r := m.ask(t, "PUT", "vmm.shutdown", "")
	if r.status != 200 || r.body != "" {
		t.Errorf("vmm.shutdown: %+v", r)
	}
	m.wantEnd(t, events...)
}

// atExit is how many events the real program may lose as it exits.
const atExit = 3

func (m *machine) wantEnd(t *testing.T, events ...string) {
	t.Helper()
	if code := m.end(t); code != 0 {
		t.Errorf("exit status %d: %s", code, m.said)
	}
	got := m.kinds(t)
	if m.real && len(got) < len(events) {
		// It does not wait for its last events to be written; the order holds.
		events = events[:max(len(got), len(events)-atExit)]
	}
	if !slices.Equal(got, events) {
		t.Errorf("events %v\nwant %v", got, events)
	}
}
