// SPDX-License-Identifier: Apache-2.0

package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmcred/vmcred/hypervisor/qemu/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

// peer runs a scripted VMM at the other end and returns the client.
func peer(t *testing.T, events func(qmp.Event), script func(*bufio.Reader, net.Conn)) *qmp.Client {
	t.Helper()
	ours, theirs := net.Pipe()
	if events == nil {
		events = func(qmp.Event) {}
	}
	c := qmp.New(ours, events)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer theirs.Close()
		script(bufio.NewReader(theirs), theirs)
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-ended
	})
	return c
}

func say(c net.Conn, s string) { _, _ = c.Write([]byte(s)) }

// command reads one command and returns its name and id.
func command(r *bufio.Reader) (string, string) {
	line, _ := r.ReadString('\n')
	var m struct {
		Execute string      `json:"execute"`
		ID      json.Number `json:"id"`
	}
	_ = json.Unmarshal([]byte(line), &m)
	return m.Execute, m.ID.String()
}

func TestConversation(t *testing.T) {
	var seen []string
	c := peer(t, func(e qmp.Event) { seen = append(seen, e.Name+string(e.Data)) }, func(r *bufio.Reader, p net.Conn) {
		say(p, greeting)
		_, id := command(r)
		say(p, `{"event": "FROM_THE_FUTURE", "timestamp": {"seconds": 1}}`+"\r\n")
		say(p, `{"return": {}, "id": 4711}`+"\r\n") // nobody waits for it
		say(p, `{"return": {}, "id": `+id+"}\r\n")
		name, id := command(r)
		say(p, `{"id": `+id+`, "error": {"class": "CommandNotFound", "desc": "no `+name+`"}}`+"\r\n")
		_, _ = command(r)
		say(p, `{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}`+"\r\n")
	})
	ctx := t.Context()
	g, err := c.Greeting(ctx)
	if err != nil || g != (qmp.Greeting{Major: 7, Minor: 2, Micro: 22}) {
		t.Fatalf("greeting %v, %v", g, err)
	}
	if out, err := c.Execute(ctx, "qmp_capabilities"); err != nil || string(out) != "{}" {
		t.Fatalf("capabilities: %s, %v", out, err)
	}
	var refused *qmp.CommandError
	if _, err := c.Execute(ctx, "frobnicate"); !errors.As(err, &refused) || refused.Desc != "no frobnicate" {
		t.Fatalf("refusal: %v", err)
	}
	if _, err := c.Execute(ctx, "quit"); !errors.Is(err, qmp.ErrClosed) {
		t.Fatalf("a peer that leaves: %v", err)
	}
	<-c.Done()
	want := `FROM_THE_FUTURE SHUTDOWN{"reason": "guest-shutdown"}`
	if got := strings.Join(seen, " "); got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	if _, err := c.Execute(ctx, "cont"); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestBrokenPeers(t *testing.T) {
	for name, tc := range map[string]struct{ says, want string }{
		"garbage":         {"hello\n", "not a QMP message"},
		"not an object":   {"[1]\n", "not a QMP message"},
		"two in one":      {`{"return": {}, "event": "X"}` + "\n", "not a QMP message"},
		"nothing in it":   {"{}\n", "not a QMP message"},
		"cut off":         {`{"QMP": {`, "unexpected EOF"},
		"endless line":    {strings.Repeat("x", qmp.MaxLine+1), "more than 65536 bytes"},
		"greets twice":    {greeting + greeting, "second greeting"},
		"leaves at once":  {"", qmp.ErrClosed.Error()},
		"negative answer": {`{"return": {}, "id": -1}` + "\n", "not a QMP message"},
	} {
		t.Run(name, func(t *testing.T) {
			c := peer(t, nil, func(_ *bufio.Reader, p net.Conn) { say(p, tc.says) })
			<-c.Done()
			if err := c.Err(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestSilentPeer(t *testing.T) {
	c := peer(t, nil, func(r *bufio.Reader, p net.Conn) {
		say(p, greeting)
		_, _ = r.ReadString('\n')
		_, _ = r.ReadString('\n') // until the client closes
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Execute(ctx, "system_powerdown"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Execute(t.Context(), "quit"); !errors.Is(err, qmp.ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

// FuzzReader: whatever a VMM sends, the client ends, and with a reason.
func FuzzReader(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "RESUME"}` + "\n"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no"}, "id": 1}` + "\n"))
	f.Add([]byte("{\"event\": \"\\u0000\"}\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		c := qmp.New(ours, func(e qmp.Event) {
			if e.Name == "" {
				t.Error("an event without a name")
			}
		})
		_, _ = theirs.Write(data)
		_ = theirs.Close()
		<-c.Done()
		if c.Err() == nil {
			t.Error("ended without a reason")
		}
	})
}
