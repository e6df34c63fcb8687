// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/audit"
	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/internal/peer"
)

// One person can have many users' numbers, and scopes: they share what one may take.
func TestWhoIsCountedTogether(t *testing.T) {
	for _, c := range []struct {
		p     peer.Peer
		group string
		out   bool
	}{
		{peer.Peer{UID: 1000, Unit: "session-3.scope", Slice: "user-1000.slice"}, "user-1000.slice", true},
		{peer.Peer{UID: 100007, Unit: "user@1000.service", Slice: "user-1000.slice"}, "user-1000.slice", true},
		{peer.Peer{UID: 991, Unit: own, Slice: "system-vmcred.slice"}, own, false},
		{peer.Peer{UID: 992, Unit: foreign, Slice: "user-vms.slice"}, foreign, false},
		{peer.Peer{UID: 992, Unit: foreign, Slice: "user-.slice"}, foreign, false},
		{peer.Peer{UID: 992, Unit: foreign, Slice: "user-1000-x.slice"}, foreign, false},
		{peer.Peer{UID: 7}, "who is in no unit", true},
		{peer.Peer{UID: 8}, "who is in no unit", true},
		{peer.Peer{Unit: "session-1.scope", Slice: "user-0.slice"}, "user-0.slice", false},
		{peer.Peer{}, "who is in no unit", false},
	} {
		if g, o := group(&c.p), outsider(&c.p); g != c.group || o != c.out {
			t.Errorf("%+v: %s %v", c.p, g, o)
		}
	}
}

// Who may have nothing gets the same words whatever there is, and is not read far.
func TestAnOutsiderLearnsNothing(t *testing.T) {
	f := setUp(t)
	f.vm("broken", "credentialz: {}\n")
	f.login(1000, 1000)
	for _, name := range []string{"test-vm", "other", "broken", "none", "", "../test-vm"} {
		_, err := f.take(name)
		if err == nil || !strings.HasSuffix(err.Error(), "who asks is in user-1000.slice, and only a VM's own unit gets its secrets") {
			t.Errorf("%q: %v", name, err)
		}
	}
	err := f.client().Record(t.Context(), "test-vm", slices.Repeat([]wire.Credential{{Host: "host-file"}}, 1000), nil)
	if err == nil || !strings.Contains(err.Error(), "only a VM's own unit") {
		t.Errorf("a long request: %v", err)
	}
	if _, err := f.client().Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// A long message of an outsider's is not waited for.
func TestAnOutsiderIsNotReadFar(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.silent = time.Hour
	f.o.limits = &l
	f.start()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.login(1000, 1000).runners})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := wire.ReceiveHello(c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{0, 1, 0, 0}); err != nil { // 64 KiB are to come
		t.Fatal(err)
	}
	answer, _, err := wire.ReceiveAnswer(c, nil)
	if err != nil || len(answer.Problems) == 0 || !strings.Contains(answer.Problems[0].Message, "only a VM's own unit") {
		t.Errorf("%+v %v", answer, err)
	}
}

// What a runner that was taken over says of its VM is not worked on for long.
func TestWhatIsNoRecord(t *testing.T) {
	f := setUp(t)
	spec, _ := f.b.vms.named("test-vm")
	c := func(hosts ...string) (out []wire.Credential) {
		for _, h := range hosts {
			out = append(out, wire.Credential{Host: h})
		}
		return out
	}
	for want, said := range map[string][]wire.Credential{
		"":                              c("host-file", "host-unit"),
		"is no credential name":         c("host-file", strings.Repeat("x", 1<<19)),
		"declares no credential":        c("host-fill"),
		"put on record twice":           c("host-file", "host-file"),
		"and the VM test-vm declares 4": c("host-file", "a", "b", "c", "d"),
	} {
		ps := recordable(spec, said)
		if want == "" && len(ps) > 0 || want != "" && (len(ps) != 1 || !strings.Contains(ps[0].Message, want)) {
			t.Errorf("%v, want %q", ps, want)
		}
	}
}

// A connection that another process got from who made it is not the peer's.
func TestAnotherUserAsks(t *testing.T) {
	f := setUp(t)
	f.o.uid = func(p *peer.Peer) uint32 { return p.UID }
	f.start()
	if _, err := f.take("test-vm"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("asks on a connection of user %d", ownUser)) {
		t.Errorf("%v", err)
	}
}

// While the log hangs and all there is room for wait for it, the broker says how it is.
func TestHealthOfABrokerThatHangs(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.work = 1
	f.o.limits = &l
	f.start()
	hangs, goOn := make(chan struct{}), make(chan struct{})
	f.log.append = func() { close(hangs); <-goOn }
	taken := make(chan error, 1)
	go func() {
		_, err := f.take("test-vm")
		taken <- err
	}()
	<-hangs
	if _, err := f.client().Health(t.Context()); err != nil {
		t.Error(err)
	}
	close(goOn)
	if err := <-taken; err != nil {
		t.Error(err)
	}
}

// Nobody keeps a broker from ending.
func TestTheEnd(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.silent, l.read, l.grace = time.Hour, time.Hour, time.Millisecond
	f.o.limits = &l
	stop := f.start()
	silent, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.runners})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := wire.ReceiveHello(silent); err != nil {
		t.Fatal(err)
	}
	slow := f.slowLoad(1)
	defer slow.Close()
	stop() // hangs, if it does not end
	if b, err := io.ReadAll(slow); len(b) >= credential.MaxValue || err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// slowLoad is systemd's question by a reader that reads one byte of a long value.
func (f *fixture) slowLoad(n int) net.Conn {
	f.t.Helper()
	unit := fmt.Sprintf("slow%d.service", n)
	f.store.set("slow", map[string]string{"long": strings.Repeat("x", credential.MaxValue)})
	f.vm(fmt.Sprint("slow", n), "unit: "+unit+"\ncredentials:\n  k: {var: slow/long}\n")
	f.as(0, unit, fmt.Sprintf("%032x", 100+n))
	f.mu.Lock()
	f.peer.Name = loadName(unit, "k")
	f.mu.Unlock()
	c, err := net.Dial("unix", f.loads)
	if err != nil {
		f.t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		f.t.Fatal(err)
	}
	return c
}

// As many readers that do not go on as there is room to work do not hold up another one,
// and have all of their values when they do.
func TestSlowReaders(t *testing.T) {
	f := setUp(t)
	l := defaultLimits()
	l.loads = 4
	f.o.limits = &l
	f.start()
	var slow []net.Conn
	for n := range l.loads + 1 {
		slow = append(slow, f.slowLoad(n))
	}
	f.store.set("slow", map[string]string{"long": "new"}) // they have what was there
	if b, err := f.as(0, foreign, first1).load(foreign, "host-api-key"); string(b) != "the api key" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := f.as(ownUser, own, second2).take("test-vm"); err != nil {
		t.Error(err)
	}
	for _, c := range slow {
		b, err := io.ReadAll(c)
		if err != nil || string(b) != strings.Repeat("x", credential.MaxValue-1) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		_ = c.Close()
	}
}

// A runner that does not close when it has its answer keeps its own unit's room only.
func TestRunnersThatStay(t *testing.T) {
	f := setUp(t)
	for n := range f.b.limits.work + 1 {
		unit := fmt.Sprintf("x%d.service", n)
		f.vm(fmt.Sprint("x", n), "unit: "+unit+"\ncredentials:\n  k: {var: gen/api-key}\n")
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: f.as(5, unit, first1).runners})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := wire.ReceiveHello(c); err != nil {
			t.Fatal(err)
		}
		if err := wire.Send(c, wire.Request{Protocol: wire.Protocol, Op: wire.Status, VM: "x"}, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := wire.ReceiveAnswer(c, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.as(ownUser, own, first1).take("test-vm"); err != nil {
		t.Error(err)
	}
}

// What a peer says is shown as one line, as it is read.
func TestWordsOfPeers(t *testing.T) {
	for in, want := range map[string]string{
		"a b-c_ä€": "a b-c_ä€", "a\nb\x1b[2Jc": "a?b?[2Jc", "a\u202eb\u200bc\u2028d\u0085e": "a?b?c?d?e", "a\xffb": "a?b",
		strings.Repeat("x", 5000): strings.Repeat("x", cleanMax) + "…",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q is shown as %q", in, got)
		}
	}
	f := setUp(t)
	refusal := []wire.Refusal{{Host: "h\x1b[2J", Reason: "gone\x1b[2J\u202e"}}
	if err := f.client().Refuse(t.Context(), "test-vm", refusal); err != nil {
		t.Fatal(err)
	}
	if said := f.log.said(); len(said) != 1 || said[0] != "refuse "+own+" test-vm h?[2J: gone?[2J?" {
		t.Errorf("%q", said)
	}
}

// A unit whose VM's file is broken all over does not fill the log.
func TestARefusalOfManyThingsIsOneRecord(t *testing.T) {
	f := setUp(t)
	f.vm("test-vm", "a: 1\nb: 2\nc: 3\n")
	if _, err := f.take("test-vm"); err == nil {
		t.Fatal("handed out")
	}
	var refused []audit.Entry
	for _, e := range f.log.entries {
		if e.Op == audit.Refuse {
			refused = append(refused, e)
		}
	}
	if len(refused) != 1 {
		t.Errorf("%d records", len(refused))
	}
	if n := bytes.Count(f.journal.Bytes(), []byte("refused for")); n != 1 {
		t.Errorf("%d words of it:\n%s", n, f.journal.String())
	}
}
