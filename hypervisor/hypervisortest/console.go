// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// testConsole: every byte value, in order, and the guest's command line as given.
func (s *suite) testConsole(t *testing.T) {
	words := probe.WordNoise + ` a,b "c" 'd' %s $HOME =,,=`
	g := s.boot(t, nil, words)
	g.finish(t)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	if n := bytes.Count(g.console.bytes(), every); n != 1 {
		t.Errorf("the 256 byte values are on the console %d times: %q", n, g.console.bytes())
	}
	// A VMM may add words of its own before it.
	r := g.report(t)
	if int(r.Cmdline.Bytes) < len(words) || int(r.Cmdline.Bytes) == len(words) && r.Cmdline.SHA256 != digest(words) {
		t.Errorf("the command line has %d bytes, given were %d", r.Cmdline.Bytes, len(words))
	}
	if strings.Contains(string(g.log.bytes()), probe.Last) {
		t.Error("the guest's console is in the VMM's log")
	}
}

// gate is a writer that stands still until it is opened, like a stopped terminal.
type gate struct {
	open <-chan struct{}
	to   io.Writer
}

func (w gate) Write(b []byte) (int, error) {
	<-w.open
	return w.to.Write(b)
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("nobody reads any more") }

// testBadReader: who reads the console decides nothing in the VM's life.
func (s *suite) testBadReader(t *testing.T) {
	whole := func(t *testing.T, g *guest) {
		g.finish(t)
		g.wantKinds(t, hypervisor.EventDelivered, hypervisor.EventRunning, hypervisor.EventPowerOff)
	}
	t.Run("late", func(t *testing.T) {
		l, g := s.launchOf(t, three(), "", credentialsOldest)
		open := make(chan struct{})
		l.Console = gate{open, g.console}
		s.start(t, l, g)
		close(open)
		whole(t, g)
		s.wantExact(t, g, three())
	})
	t.Run("never", func(t *testing.T) {
		l, g := s.launchOf(t, three(), "", credentialsOldest)
		open := make(chan struct{})
		defer close(open)
		l.Console = gate{open, io.Discard}
		s.start(t, l, g)
		whole(t, g)
	})
	t.Run("gone", func(t *testing.T) {
		l, g := s.launchOf(t, three(), "", credentialsOldest)
		l.Console, l.Log = broken{}, broken{}
		s.start(t, l, g)
		whole(t, g)
	})
	t.Run("none", func(t *testing.T) {
		l, g := s.launchOf(t, three(), "", credentialsOldest)
		l.Console, l.Log = nil, nil
		s.start(t, l, g)
		whole(t, g)
	})
}
