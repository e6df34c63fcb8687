// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// three are secrets of the usual kind, one with every byte that could hurt.
func three() []item {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return []item{
		{kind: credential.Secret, host: "host-api-key", guest: "HOST_API_KEY", value: "an-API-key-of-32-bytes-0123456789"},
		{kind: credential.Secret, host: "host-every", guest: "HOST_EVERY", value: string(every)},
		{kind: credential.Secret, host: "host-lines", guest: "HOST_LINES", value: "first line of a value\nsecond, with a comma\n"},
		{kind: credential.Static, guest: "ENVIRONMENT", value: "test"},
	}
}

func (g *guest) wantKinds(t *testing.T, want ...hypervisor.EventKind) {
	t.Helper()
	if got := g.kinds(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v\nlog: %s", got, want, g.log.bytes())
	}
}

func (s *suite) wantExact(t *testing.T, g *guest, items []item) {
	t.Helper()
	for _, fault := range compare(items, credentialsOldest, s.offers(), g.report(t)) {
		t.Error(fault)
	}
}

func (s *suite) testEvents(t *testing.T) {
	g := s.boot(t, three(), "")
	if g.PID() <= 0 || g.Confinement() == "" {
		t.Errorf("process %d, confinement %q", g.PID(), g.Confinement())
	}
	g.finish(t)
	g.wantKinds(t, hypervisor.EventDelivered, hypervisor.EventRunning, hypervisor.EventPowerOff)
	if e := g.exit; !e.Clean || e.Reboot || e.Code != 0 || e.Signal != "" {
		t.Errorf("exit %+v", e)
	}
	s.wantExact(t, g, three())
}

// testReboot: a reset would hand out the same values again, so it ends the VMM.
func (s *suite) testReboot(t *testing.T) {
	g := s.boot(t, three(), probe.WordReboot)
	g.finish(t)
	g.wantKinds(t, hypervisor.EventDelivered, hypervisor.EventRunning, hypervisor.EventReboot)
	if !g.exit.Reboot {
		t.Errorf("exit %+v", g.exit)
	}
	s.wantExact(t, g, three())
}

func (s *suite) testTripleFault(t *testing.T) {
	g := s.boot(t, three(), probe.WordPanic)
	g.finish(t)
	s.wantExact(t, g, three()) // once: a second report is an error
	if slices.Contains(g.kinds(), hypervisor.EventPowerOff) {
		t.Errorf("events %v: a fault is no power-off", g.kinds())
	}
}

func (s *suite) testShutdown(t *testing.T) {
	g := s.boot(t, three(), probe.WordWait)
	g.console.await(t, probe.Last)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Shutdown(ctx); err != nil {
		t.Fatalf("Shutdown: %v", err)
	}
	g.finish(t)
	g.wantKinds(t, hypervisor.EventDelivered, hypervisor.EventRunning, hypervisor.EventPowerOff)
	if !g.exit.Clean {
		t.Errorf("exit %+v", g.exit)
	}
	// What has ended can be asked to end again.
	_ = g.Shutdown(ctx)
	_ = g.Quit(ctx)
	if err := g.Kill(); err != nil {
		t.Errorf("Kill after the end: %v", err)
	}
}

// testQuit: the guest is deaf to the power button, the VMM is not to us.
func (s *suite) testQuit(t *testing.T) {
	g := s.boot(t, three(), probe.WordHang)
	g.console.await(t, probe.Last)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown, which the guest ignores: %v", err)
	}
	if err := g.Quit(ctx); err != nil {
		t.Fatalf("Quit: %v", err)
	}
	g.finish(t)
	if e := g.exit; !e.Clean || e.Reboot || e.Signal != "" {
		t.Errorf("exit %+v", e)
	}
}

func (s *suite) testKill(t *testing.T) {
	g := s.boot(t, three(), probe.WordHang)
	g.console.await(t, probe.Last)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Wait(over); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait, cancelled while the VM runs: %v", err)
	}
	if err := g.Kill(); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	if processExists(g.PID()) {
		t.Error("the process is there after Kill")
	}
	g.finish(t)
	if e := g.exit; e.Reboot || e.Code == 0 {
		t.Errorf("exit %+v", e)
	}
	noChildren(t)
}
