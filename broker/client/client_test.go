// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/secret"
)

// serve answers one connection, and returns a client for it. The function runs in a
// goroutine.
func serve(t *testing.T, answer func(c *net.UnixConn)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		answer(c)
	}()
	return New(Options{Socket: path, UID: uint32(os.Geteuid()), Wait: time.Minute})
}

func arena(t *testing.T) *secret.Arena {
	t.Helper()
	a := secret.NewArena()
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func value(t *testing.T, a *secret.Arena, text string) *secret.Value {
	t.Helper()
	v, err := a.Read(strings.NewReader(text), 100)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// polite is a broker that reads the request and sends this answer.
func polite(t *testing.T, got *wire.Request, values *[]*secret.Value, a *secret.Arena, answer *wire.Answer, with []*secret.Value) func(*net.UnixConn) {
	return func(c *net.UnixConn) {
		if err := wire.Send(c, wire.Hello{Protocol: wire.Protocol}, nil); err != nil {
			t.Error(err)
		}
		r, v, _, err := wire.ReceiveRequest(c, a, wire.MaxFrame)
		if err != nil {
			t.Error(err)
			return
		}
		*got, *values = *r, v
		m, err := wire.Values(with)
		if err != nil {
			t.Error(err)
			return
		}
		if err := wire.Send(c, answer, m); err != nil {
			t.Error(err)
		}
		if err := wire.AwaitClose(c); err != nil {
			t.Error(err)
		}
		if m != nil {
			_ = m.Release()
		}
	}
}

func TestTake(t *testing.T) {
	a, b := arena(t), arena(t)
	var r wire.Request
	var sent []*secret.Value
	c := serve(t, polite(t, &r, &sent, b, &wire.Answer{Credentials: []wire.Credential{
		{Host: "host-a", Bytes: 3, Version: "v1"}, {Host: "host-b", Bytes: 0, Version: "v2"},
	}}, []*secret.Value{value(t, b, "one"), value(t, b, "")}))
	got, err := c.Take(t.Context(), "x", a)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, wire.Request{Protocol: wire.Protocol, Op: wire.Take, VM: "x"}) || sent != nil {
		t.Errorf("asked %+v", r)
	}
	if !got.Values["host-a"].Equal(value(t, a, "one")) || got.Values["host-b"].Len() != 0 || got.Versions["host-a"] != "v1" || got.Versions["host-b"] != "v2" {
		t.Errorf("%+v", got)
	}
}

func TestRecord(t *testing.T) {
	a, b := arena(t), arena(t)
	var r wire.Request
	var sent []*secret.Value
	c := serve(t, polite(t, &r, &sent, b, &wire.Answer{}, nil))
	said := []wire.Credential{{Host: "host-a", Guest: "HOST_A", Bytes: 3, Channel: "smbios"}}
	if err := c.Record(t.Context(), "x", said, []*secret.Value{value(t, a, "one")}); err != nil {
		t.Fatal(err)
	}
	if r.Op != wire.Record || !slices.Equal(r.Credentials, said) || len(sent) != 1 || !sent[0].Equal(value(t, b, "one")) {
		t.Errorf("%+v", r)
	}
}

func TestTheRest(t *testing.T) {
	var r wire.Request
	var sent []*secret.Value
	c := serve(t, polite(t, &r, &sent, arena(t), &wire.Answer{}, nil))
	why := []wire.Refusal{{Host: "host-a", Reason: "it is empty"}}
	if err := c.Refuse(t.Context(), "x", why); err != nil || r.Op != wire.Refuse || !slices.Equal(r.Refusals, why) {
		t.Errorf("%+v %v", r, err)
	}
	want := []wire.Delivered{{Host: "host-a", Now: wire.Changed}}
	c = serve(t, polite(t, &r, &sent, arena(t), &wire.Answer{Delivered: want}, nil))
	if got, err := c.Status(t.Context(), "x"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	c = serve(t, polite(t, &r, &sent, arena(t), &wire.Answer{Health: &wire.State{PID: 7}}, nil))
	if got, err := c.Health(t.Context()); err != nil || got.PID != 7 {
		t.Errorf("%+v %v", got, err)
	}
}

// hello says it, and reads the request.
func hello(c *net.UnixConn) {
	_ = wire.Send(c, wire.Hello{Protocol: wire.Protocol}, nil)
	a := secret.NewArena()
	defer a.Close()
	_, _, _, _ = wire.ReceiveRequest(c, a, wire.MaxFrame)
}

func TestWhatGoesWrong(t *testing.T) {
	for name, c := range map[string]struct {
		broker     func(*net.UnixConn)
		want, hint string
	}{
		"closes at once":   {func(*net.UnixConn) {}, "the broker ended before it had answered", look},
		"closes after all": {hello, "the broker ended before it had answered", look},
		"another version":  {func(c *net.UnixConn) { _ = wire.Send(c, wire.Hello{Protocol: 9}, nil) }, "another version of vmcred: it speaks version 9", "systemctl restart vmcred-broker.service"},
		"closes half-way":  {func(c *net.UnixConn) { hello(c); _, _ = c.Write([]byte{0, 0, 0, 9, '{'}) }, "of no use: closed in the middle", look},
		"no sense":         {func(c *net.UnixConn) { hello(c); _, _ = c.Write([]byte{0, 0, 0, 1, '{'}) }, "of no use: no message of vmcred", look},
		"values are missing": {func(c *net.UnixConn) {
			hello(c)
			_ = wire.Send(c, wire.Answer{Credentials: []wire.Credential{{Host: "a", Bytes: 1}}}, nil)
		}, "the values did not come along", look},
		"cannot now": {func(c *net.UnixConn) {
			hello(c)
			_ = wire.Send(c, wire.Answer{Problems: []wire.Problem{{Message: "the log is full", Hint: "make room", Retry: true}}}, nil)
		}, "the broker hands nothing out now: the log is full", "make room"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := serve(t, c.broker).Take(t.Context(), "x", arena(t))
			var failed *FailedError
			if !errors.As(err, &failed) || got != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(failed.Hint(), c.hint) {
				t.Errorf("%v, hint %q; want %q, %q", err, hintOf(err), c.want, c.hint)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	c := serve(t, func(c *net.UnixConn) {
		hello(c)
		_ = wire.Send(c, wire.Answer{Problems: []wire.Problem{
			{Message: "later", Retry: true}, {Credential: "host-a", Message: "it is empty", Hint: "fill it"}, {Message: "no"},
		}}, nil)
	})
	_, err := c.Take(t.Context(), "x", arena(t))
	var refused *RefusedError
	if !errors.As(err, &refused) || len(refused.Problems) != 2 || err.Error() != "the broker refuses: host-a: it is empty (and 1 more)" || refused.Hint() != "fill it" {
		t.Errorf("%v", err)
	}
}

// A broker that hangs is waited for until the time is over, or nobody waits any more.
func TestABrokerThatHangs(t *testing.T) {
	for _, n := range []int{0, 1} {
		hold := make(chan struct{})
		c := serve(t, func(c *net.UnixConn) {
			if n > 0 {
				hello(c)
			}
			<-hold
		})
		c.wait = 20 * time.Millisecond
		_, err := c.Take(t.Context(), "x", arena(t))
		if err == nil || err.Error() != "the broker did not answer within 20ms" || hintOf(err) != look {
			t.Errorf("%v", err)
		}
		close(hold)
	}
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, func(c *net.UnixConn) { hello(c); cancel(); <-hold })
	if _, err := c.Health(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(hold)
}

func TestNoBroker(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "dead")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, name := range []string{"none", "dead"} {
		_, err := New(Options{Socket: filepath.Join(dir, name)}).Health(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "there is no broker") || !strings.Contains(hintOf(err), "enable --now vmcred-broker.socket vmcred-runner.socket") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Somebody else listens: nothing is sent there, and nothing believed.
func TestASquatter(t *testing.T) {
	said := make(chan int, 1)
	c := serve(t, func(c *net.UnixConn) {
		_ = wire.Send(c, wire.Hello{Protocol: wire.Protocol}, nil)
		n, _ := c.Read(make([]byte, 1))
		said <- n
	})
	c.uid++
	_, err := c.Take(t.Context(), "x", arena(t))
	if err == nil || !strings.HasPrefix(err.Error(), "somebody else is where the broker should be") || hintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if n := <-said; n != 0 {
		t.Error("it was asked all the same")
	}
}
