// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/vm"
)

const (
	readyPort    = 1_000_000_042 // as long as the runner's own
	readySystemd = 254           // the first that says READY=1 over vsock
)

// address tells the guest where to say that it is ready.
func address() item {
	return item{kind: credential.Static, guest: readyAddress, value: fmt.Sprintf("vsock-stream:2:%d", readyPort)}
}

// heard keeps what the guest said, one message for each connection.
type heard struct {
	mu   sync.Mutex
	said []string
}

func (h *heard) handle(c net.Conn) {
	b := make([]byte, 4<<10)
	n, _ := c.Read(b) // not until the end: not every VMM passes that on
	h.mu.Lock()
	h.said = append(h.said, string(b[:n]))
	h.mu.Unlock()
	_ = c.Close()
}

func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.said)
}

// bootReady starts a VM with vsock whose host listens. Beside the address it has the
// usual secrets and one that is too long for SMBIOS where there is another channel.
func (s *suite) bootReady(t *testing.T, words string) (*guest, *heard, hypervisor.Launch, []item) {
	t.Helper()
	items := append(three(), filled(strings.Repeat("F", 28), s.longest()), address())
	l, g := s.launchOf(t, items, words, readySystemd)
	l.Spec.Vsock = &vm.Vsock{CID: 42}
	if ps := vm.Problems(s.driver.Check(l.Spec, s.info)).Fatal(); len(ps) > 0 {
		t.Fatalf("Check: %v", ps)
	}
	h := &heard{}
	l.Ports = map[uint32]func(net.Conn){readyPort: h.handle}
	s.start(t, l, g)
	return g, h, l, items
}

// testVsock runs what needs a vsock device.
func (s *suite) testVsock(t *testing.T) {
	s.Vsock(t)
	t.Run("ready", s.testReady)
	t.Run("ready needs the whole table", s.testReadyNeedsTheTable)
	t.Run("killed", s.testReadyKilled)
	t.Run("a start that fails", s.testReadyFails)
}

// testReady: the guest finds the address, which is last in the table, and what it
// says arrives.
func (s *suite) testReady(t *testing.T) {
	g, h, l, items := s.bootReady(t, probe.WordReady)
	g.finish(t)
	if got, want := h.all(), []string{probe.MessageActive, probe.MessageReady}; !slices.Equal(got, want) {
		t.Errorf("the host heard %q, want %q", got, want)
	}
	if !g.report(t).SaidReady() {
		t.Errorf("the guest reports %+v", g.report(t).Ready)
	}
	for _, fault := range compare(items, readySystemd, s.offers(), g.report(t)) {
		t.Error(fault)
	}
	nothingLeft(t, l)
}

// testReadyNeedsTheTable: a guest that reads a part of the table never says so.
func (s *suite) testReadyNeedsTheTable(t *testing.T) {
	g, h, l, _ := s.bootReady(t, probe.WordReady+" "+probe.WordCut(100))
	g.finish(t)
	if got := h.all(); len(got) > 0 {
		t.Errorf("the host heard %q", got)
	}
	if r := g.report(t).Ready; r == nil || r.Found {
		t.Errorf("the guest reports %+v", r)
	}
	nothingLeft(t, l)
}

// testReadyKilled: a VMM that is killed leaves its sockets to be removed.
func (s *suite) testReadyKilled(t *testing.T) {
	g, _, l, _ := s.bootReady(t, probe.WordReady+" "+probe.WordHang)
	g.console.await(t, probe.Last)
	if err := g.Kill(); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	g.finish(t)
	nothingLeft(t, l)
}

// testReadyFails: a start that fails once somebody listens closes all of it, too.
func (s *suite) testReadyFails(t *testing.T) {
	l, g := s.launchOf(t, append(three(), address()), "", readySystemd)
	l.Spec.Vsock = &vm.Vsock{CID: 42}
	l.Ports = map[uint32]func(net.Conn){readyPort: func(net.Conn) {}}
	cause := errors.New("the source is gone")
	l.Deliver = func(context.Context) (*delivery.Payload, error) { return nil, cause }
	if err := s.failing(t, t.Context(), l, g); !errors.Is(err, cause) {
		t.Errorf("error %v, want one with its cause", err)
	}
	nothingLeft(t, l)
}

// nothingLeft: no process, and nothing in the VM's runtime directory.
func nothingLeft(t *testing.T, l hypervisor.Launch) {
	t.Helper()
	noChildren(t)
	left, err := os.ReadDir(l.RunDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
