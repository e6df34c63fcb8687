// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// failing starts what must not start and checks that nothing of it is left.
func (s *suite) failing(t *testing.T, ctx context.Context, l hypervisor.Launch, g *guest) error {
	t.Helper()
	before := descriptors(t)
	m, err := s.driver.Start(ctx, l)
	if err == nil {
		_ = m.Kill()
		t.Fatal("Start had no error")
	}
	t.Logf("Start: %v", err)
	if m != nil {
		t.Errorf("Start returned a machine beside its error")
	}
	if n := g.delivered.Load(); n > 1 {
		t.Errorf("Deliver was called %d times", n)
	}
	noChildren(t)
	if after := descriptors(t); len(after) > len(before) {
		t.Errorf("descriptors left open: before %q, after %q", before, after)
	}
	if g.payload != nil {
		g.payloadClosed(t)
	}
	wantNone(t, search("the error", []byte(err.Error()), three()))
	wantNone(t, search("the log", g.log.bytes(), three()))
	return err
}

func (s *suite) testBadVMM(t *testing.T) {
	script := func(t *testing.T, lines string) string {
		path := filepath.Join(publicDir(t), "vmm")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cases := map[string]func(t *testing.T) string{
		"missing":               func(t *testing.T) string { return filepath.Join(publicDir(t), "missing") },
		"not executable":        func(*testing.T) string { return s.kernel },
		"dies at once":          func(t *testing.T) string { return script(t, "exit 3") },
		"dies with a word":      func(t *testing.T) string { return script(t, "echo no such thing >&2; exit 1") },
		"dies by a signal":      func(t *testing.T) string { return script(t, "kill -9 $$") },
		"succeeds at nothing":   func(t *testing.T) string { return script(t, "exit 0") },
		"never greets":          func(t *testing.T) string { return script(t, "exec /bin/sleep 3600") },
		"is deaf to SIGTERM":    func(t *testing.T) string { return script(t, "trap '' TERM; exec /bin/sleep 3600") },
		"closes all and lives":  func(t *testing.T) string { return script(t, "exec 3<&- 4<&- 5<&- 6<&- /bin/sleep 3600") },
		"talks without an end":  func(t *testing.T) string { return script(t, "exec /usr/bin/yes >&2") },
		"is an empty file":      func(t *testing.T) string { return script(t, "") },
		"writes to its control": func(t *testing.T) string { return script(t, "echo hello >&3; exec /bin/sleep 3600") },
	}
	for name, path := range cases {
		t.Run(name, func(t *testing.T) {
			l, g := s.launchOf(t, three(), "", credentialsOldest)
			l.Info.Path = path(t)
			ctx, cancel := context.WithTimeout(t.Context(), hurry)
			defer cancel()
			_ = s.failing(t, ctx, l, g)
		})
	}
}

func (s *suite) testDeliverFails(t *testing.T) {
	cause := errors.New("the source is gone")
	l, g := s.launchOf(t, three(), "", credentialsOldest)
	l.Deliver = func(context.Context) (*delivery.Payload, error) {
		g.delivered.Add(1)
		return nil, cause
	}
	if err := s.failing(t, t.Context(), l, g); !errors.Is(err, cause) {
		t.Errorf("error %v, want one with its cause", err)
	}
	if n := g.delivered.Load(); n != 1 {
		t.Errorf("Deliver was called %d times", n)
	}
}

func (s *suite) testCancelled(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		l, g := s.launchOf(t, three(), "", credentialsOldest)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = s.failing(t, ctx, l, g)
		if n := g.delivered.Load(); n != 0 {
			t.Errorf("Deliver was called %d times: values were released for a start that nobody wanted", n)
		}
	})
	t.Run("while values are read", func(t *testing.T) {
		l, g := s.launchOf(t, three(), probe.WordHang, credentialsOldest)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		deliver := l.Deliver
		l.Deliver = func(ctx context.Context) (*delivery.Payload, error) {
			cancel()
			return deliver(ctx)
		}
		if err := s.failing(t, ctx, l, g); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}
