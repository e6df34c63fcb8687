// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// recorder keeps what a VM writes and lets a test wait for a part of it.
type recorder struct {
	mu      sync.Mutex
	all     bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
	return r.all.Write(b)
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.all.Bytes())
}

// await returns when the text was written, and fails the test if it never is.
func (r *recorder) await(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		r.mu.Lock()
		found, changed := bytes.Contains(r.all.Bytes(), []byte(text)), r.changed
		r.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("no %q on the console, which has %q", text, r.bytes())
		}
	}
}

// guest is one VM of the suite.
type guest struct {
	hypervisor.Machine
	console, log *recorder
	delivered    atomic.Int32 // calls of Deliver
	payload      *delivery.Payload
	events       []hypervisor.Event // after finish
	exit         hypervisor.Exit    // after finish
}

// launchOf prepares a start of these items. The set is closed with the test.
func (s *suite) launchOf(t *testing.T, items []item, words string, systemd int) (hypervisor.Launch, *guest) {
	t.Helper()
	spec := s.spec(words)
	spec.Guest.Systemd = systemd
	set, err := newSet(items)
	if err != nil {
		t.Fatalf("the set is refused: %v", err)
	}
	t.Cleanup(func() { _ = set.Close() })
	plan, refusals := delivery.Make(s.driver.Offers(spec, s.info), delivery.Guest{Systemd: systemd}, set.Metas())
	if len(refusals) > 0 {
		t.Fatalf("the set is refused: %v", refusals)
	}
	g := &guest{console: newRecorder(), log: newRecorder()}
	return hypervisor.Launch{
		Spec: spec, Info: s.info, Plan: plan,
		Deliver: func(context.Context) (*delivery.Payload, error) {
			g.delivered.Add(1)
			p, err := plan.Encode(set)
			g.payload = p
			return p, err
		},
		Identity: s.Identity, RunDir: s.runDir(t), Console: g.console, Log: g.log,
	}, g
}

func (s *suite) runDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-run-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if s.Identity != nil {
		if err := os.Chown(dir, int(s.Identity.UID), int(s.Identity.GID)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// boot starts a VM with these items for a guest with systemd 252.
func (s *suite) boot(t *testing.T, items []item, words string) *guest {
	t.Helper()
	l, g := s.launchOf(t, items, words, credentialsOldest)
	s.start(t, l, g)
	return g
}

// start starts it, and cancels the context right after: the VM must not care.
func (s *suite) start(t *testing.T, l hypervisor.Launch, g *guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := s.driver.Start(ctx, l)
	if err != nil {
		t.Fatalf("Start: %v\nlog: %s", err, g.log.bytes())
	}
	g.Machine = m
	t.Cleanup(func() { _ = m.Kill() })
	if n := g.delivered.Load(); n != 1 {
		t.Errorf("Deliver was called %d times", n)
	}
	g.payloadClosed(t)
}

// payloadClosed: after Start the encodings are wiped. Values that travel as
// they are belong to the set, and stay.
func (g *guest) payloadClosed(t *testing.T) {
	t.Helper()
	for _, r := range g.payload.SMBIOS {
		for _, p := range r {
			if p.Secret == nil {
				continue
			}
			if err := p.Secret.Use(func([]byte) error { return nil }); err == nil {
				t.Error("an encoded value is still in our memory after Start")
			}
		}
	}
}

// finish waits for the end of the VM: its events, its process.
func (g *guest) finish(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for open := true; open; {
		select {
		case e, ok := <-g.Events():
			if open = ok; ok {
				g.events = append(g.events, e)
			}
		case <-ctx.Done():
			t.Fatalf("the VM does not end: events %v, console %q, log %q", g.events, g.console.bytes(), g.log.bytes())
		}
	}
	exit, err := g.Wait(ctx)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	g.exit = exit
	if processExists(g.PID()) {
		t.Errorf("process %d is there after Wait", g.PID())
	}
}

// report returns what the guest found, after finish.
func (g *guest) report(t *testing.T) *probe.Report {
	t.Helper()
	r, err := probe.Parse(bytes.NewReader(g.console.bytes()))
	if err != nil {
		t.Fatalf("%v\nconsole: %q\nlog: %q", err, g.console.bytes(), g.log.bytes())
	}
	return r
}

// kinds are the events' kinds in order.
func (g *guest) kinds() []hypervisor.EventKind {
	var out []hypervisor.EventKind
	for _, e := range g.events {
		out = append(out, e.Kind)
	}
	return out
}

// newSet fills a set; the error is why it refuses an item.
func newSet(items []item) (*credential.Set, error) {
	set := credential.NewSet()
	for _, it := range items {
		if err := it.addTo(set); err != nil {
			return nil, errors.Join(err, set.Close())
		}
	}
	return set, nil
}
