// SPDX-License-Identifier: Apache-2.0

package ready

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// record is a relay and what it passed on and said.
type record struct {
	*Relay
	mu     sync.Mutex
	states []string
	lines  []string
}

func newRecord() *record {
	r := &record{}
	r.Relay = NewRelay(func(m Message) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.states = append(r.states, m.State())
	}, func(line string) { r.lines = append(r.lines, line) })
	return r
}

func (r *record) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.states...)
}

func (r *record) want(t *testing.T, states ...string) {
	t.Helper()
	if got := r.got(); strings.Join(got, "|") != strings.Join(states, "|") {
		t.Errorf("passed on %q, not %q", got, states)
	}
}

// handle starts the relay on one end of a pipe and returns the guest's.
func (r *record) handle() net.Conn {
	guest, host := net.Pipe()
	go r.Handle(host)
	return guest
}

// closed waits until the relay has closed, and returns how long that took.
func closed(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the relay said something: %d, %v", n, err)
	}
	return time.Since(start)
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Errorf("sending: %v", err)
	}
}

// The clock of a synctest bubble moves only when everybody waits.
func TestAPeerThatNeverClosesIsNotWaitedFor(t *testing.T) {
	for in, after := range map[string]time.Duration{"READY=1\nSTATUS=up": idle, "READY=1\nSTATUS=up\n": 0} {
		synctest.Test(t, func(t *testing.T) {
			r := newRecord()
			c := r.handle()
			send(t, c, in)
			if d := closed(t, c); d != after {
				t.Errorf("%q: closed after %v, not %v", in, d, after)
			}
			synctest.Wait()
			r.want(t, "READY=1\nSTATUS=up")
		})
	}
}

func TestAPeerThatEndsItsMessageIsNotMadeToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		guest, host := net.Pipe()
		start := time.Now()
		go func() { send(t, guest, "READY=1"); guest.Close() }()
		r.Handle(host)
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v", d)
		}
		r.want(t, "READY=1")
	})
}

func TestASilentPeerIsClosedAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		for range 3 {
			if d := closed(t, r.handle()); d != most {
				t.Errorf("closed after %v", d)
			}
		}
		synctest.Wait()
		r.want(t)
		if s := r.Stats(); s.Useless != 3 || len(r.lines) != 1 || !strings.Contains(r.lines[0], "sent nothing") {
			t.Errorf("%+v, said %q", s, r.lines)
		}
	})
}

func TestASlowPeer(t *testing.T) {
	for pause, want := range map[time.Duration]string{
		idle / 2: "STATUS=slow", // each byte comes before we lose patience
		2 * idle: "",            // the first byte is taken for all of it
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRecord()
			c := r.handle()
			for _, b := range []byte("STATUS=slow") {
				if _, err := c.Write([]byte{b}); err != nil {
					break
				}
				<-time.After(pause)
			}
			closed(t, c)
			synctest.Wait()
			if got := strings.Join(r.got(), ""); got != want {
				t.Errorf("a byte each %v: %q", pause, got)
			}
		})
	}
}

func TestAPeerWithoutEndIsCutAtTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		start := time.Now()
		c := r.handle()
		send(t, c, "READY=1\nSTATUS=")
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				break
			}
			<-time.After(idle / 2)
		}
		if d := time.Since(start); d > most+idle {
			t.Errorf("closed after %v", d)
		}
		synctest.Wait()
		r.want(t, "READY=1") // the line that was cut is no line
	})
}

func TestSilentPeersDoNotKeepAMessageOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		first := r.handle()
		for range 5*MaxPeers - 1 {
			synctest.Wait()
			r.handle()
		}
		if d := closed(t, first); d != 0 {
			t.Errorf("the oldest stayed for %v", d)
		}
		synctest.Wait()
		c := r.handle()
		send(t, c, "READY=1\n")
		if d := closed(t, c); d != 0 {
			t.Errorf("waited %v", d)
		}
		<-time.After(2 * most)
		synctest.Wait()
		r.want(t, "READY=1")
		if s := r.Stats(); s.Crowded != 4*MaxPeers+1 || s.Useless != MaxPeers-1 || len(r.peers) != 0 {
			t.Errorf("%+v, %d left", s, len(r.peers))
		}
	})
}

func TestAFloodDoesNotHideTheFirstReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		say := func(s string) {
			c := r.handle()
			_, _ = io.WriteString(c, s)
			closed(t, c)
			synctest.Wait()
		}
		for i := range 3 * burst {
			say(fmt.Sprintf("STATUS=%d\n", i))
		}
		say("READY=1\n")
		say("READY=1\n") // a second one is one of many
		if got := r.got(); len(got) != burst+1 || got[burst] != "READY=1" {
			t.Errorf("%d passed on, the last: %q", len(got), got[len(got)-1])
		}
		unread := r.handle()
		if d := closed(t, unread); d != 0 {
			t.Errorf("one over the limit was read for %v", d)
		}
		if s := r.Stats(); s.Limited != 2*burst+2 || len(r.lines) != 1 {
			t.Errorf("%+v, said %q", s, r.lines)
		}
		<-time.After(time.Second)
		for range 2 * perSecond {
			say("STATUS=again\n")
		}
		if n := len(r.got()) - burst - 1; n != perSecond {
			t.Errorf("%d in the next second", n)
		}
	})
}

func TestASlowHostDoesNotHoldTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		goOn := make(chan struct{})
		r := NewRelay(func(m Message) {
			got = append(got, m.Status)
			<-goOn
		}, nil)
		for _, s := range []string{"STATUS=1\n", "STATUS=2\n"} {
			guest, host := net.Pipe()
			go r.Handle(host)
			send(t, guest, s)
			if s == "STATUS=1\n" {
				closed(t, guest)
			}
		}
		synctest.Wait()
		if len(got) != 1 {
			t.Errorf("not one after the other: %q", got)
		}
		close(goOn)
		synctest.Wait()
		if strings.Join(got, "") != "12" {
			t.Errorf("order: %q", got)
		}
	})
}

func TestMessagesStayInOrder(t *testing.T) {
	r := newRecord()
	var want []string
	for i := range burst {
		c := r.handle()
		send(t, c, fmt.Sprintf("STATUS=%d\n", i))
		closed(t, c) // as PID 1 does, before it says the next
		want = append(want, fmt.Sprintf("STATUS=%d", i))
	}
	r.turn <- struct{}{} // the last one is through
	r.want(t, want...)
}

func TestWhatIsDroppedIsSaidOnce(t *testing.T) {
	r := newRecord()
	for range 3 {
		for _, s := range []string{"MAINPID=1\nREADY=1\n", "FDSTORE=1\n", "X_SYSTEMD_SIGNALS_LEVEL=2\n", "\x1b[2J=1\n", "nothing\n"} {
			c := r.handle()
			send(t, c, s)
			closed(t, c)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) != 3 || strings.ContainsRune(strings.Join(r.lines, ""), '\x1b') {
		t.Errorf("said %q", r.lines)
	}
	for i := range 2 * maxLogged {
		r.tellDropped([]string{fmt.Sprintf("KEY%d", i)})
	}
	if len(r.lines) != maxLogged {
		t.Errorf("a guest made it say %d lines", len(r.lines))
	}
}

// A real socket has a buffer, a reset and a half-close, which a pipe has not.
func TestOverUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRecord()
	dial := func(s []byte) *net.UnixConn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = c.Write(s) }()
		host, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r.Handle(host)
		return c.(*net.UnixConn)
	}
	defer dial([]byte("READY=1\nSTATUS=open")).Close()
	defer dial([]byte("STATUS=line\n")).Close()
	defer dial(append([]byte("STATUS=long\n"), bytes.Repeat([]byte("x"), 1<<20)...)).Close()
	silent := dial(nil)
	if _, err := silent.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the silent one reads %v", err)
	}
	silent.Close()
	r.want(t, "READY=1\nSTATUS=open", "STATUS=line", "STATUS=long")
}
