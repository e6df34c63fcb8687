// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/ready"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// notifyPort is the host's vsock port that a guest reports to. On a host whose
// kernel carries vsock all VMs share the ports, so each has one of its own; its
// length is always the same, because a plan is made of lengths.
func notifyPort(v *vm.Vsock) uint32 { return 1_000_000_000 + v.CID%1_000_000_000 }

// notifyAddress is the value of vmm.notify_socket (systemd.system-credentials(7)).
func notifyAddress(v *vm.Vsock) string { return fmt.Sprintf("vsock-stream:2:%d", notifyPort(v)) }

// oneAtATime: the guest's messages and our own come from two sides.
func oneAtATime(notify func(string)) func(string) {
	var mu sync.Mutex
	return func(state string) {
		mu.Lock()
		defer mu.Unlock()
		notify(state)
	}
}

// guest is what one boot's guest says of itself.
type guest struct {
	r     *run
	relay *ready.Relay  // nil: nobody listens
	up    chan struct{} // closed at READY=1; nil if nobody waits for it
	plan  delivery.Plan // what it was given, once it runs
	began time.Time
	timer *time.Timer

	mu     sync.Mutex // guards what follows
	said   string     // its last STATUS, fit for a log
	isUp   bool
	over   bool // what it says is not passed on any more
	gaveUp bool
}

func (r *run) newGuest() *guest {
	g := &guest{r: r}
	if r.Spec.Notify == vm.NotifyGuest {
		g.up = make(chan struct{})
		g.relay = ready.NewRelay(g.hear, func(what string) {
			r.Log.Warn(what, "hint", "a guest may say READY, STATUS, ERRNO, EXIT_STATUS and which units it reached")
		})
	}
	return g
}

// ports is who answers the guest.
func (g *guest) ports() map[uint32]func(net.Conn) {
	if g.relay == nil {
		return nil
	}
	return map[uint32]func(net.Conn){notifyPort(g.r.Spec.Vsock): g.relay.Handle}
}

// hear passes one message on to the host's systemd.
func (g *guest) hear(m ready.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return
	}
	first := m.Ready && !g.isUp
	m.Ready = first
	switch {
	case m.Status != "":
		g.said = m.Status
		m.Status = "guest: " + m.Status
	case first:
		m.Status = "running" // in place of what was waited for
	}
	if state := m.State(); state != "" {
		g.r.Notify(state)
	}
	if first {
		g.isUp = true
		close(g.up)
	}
}

// runs says what is waited for now that the guest runs.
func (g *guest) runs() {
	g.began = time.Now()
	if g.up == nil {
		g.r.recordReady(vm.NotifyBoot)
		g.r.Notify("READY=1\nSTATUS=running")
		return
	}
	g.timer = time.NewTimer(g.r.Spec.StartTimeout)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isUp {
		return // it was faster than we, and nothing is waited for
	}
	g.r.Log.Info(fmt.Sprintf("waiting up to %s for the guest to say that it is up", g.r.Spec.StartTimeout))
	// Our own patience decides, not the unit's TimeoutStartSec=.
	patience := g.r.Spec.StartTimeout + g.r.Spec.StopTimeout + startGrace
	g.r.Notify(fmt.Sprintf("STATUS=waiting for the guest to say that it is up\nEXTEND_TIMEOUT_USEC=%d", patience.Microseconds()))
}

// startGrace is what giving up takes beyond the limit and the guest's stop-timeout:
// asking the VMM, and killing it.
const startGrace = 30 * time.Second

func (g *guest) late() <-chan time.Time {
	if g.timer == nil {
		return nil
	}
	return g.timer.C
}

// upAtLast is proven for a guest that was up and gone before anybody looked.
func (g *guest) upAtLast(up <-chan struct{}) {
	select {
	case <-up:
		g.proven()
	default: // also for nil: it was seen, or nobody waits for it
	}
}

// proven says what READY=1 proves: its address is the last string of the SMBIOS
// table, so the guest has read the table to its end. It says nothing of fw_cfg.
func (g *guest) proven() {
	g.timer.Stop()
	table, other := 0, 0
	for _, e := range g.plan.Entries {
		switch {
		case e.Kind == credential.OEMString || e.Guest == credential.NotifySocket:
		case e.Channel == delivery.SMBIOS:
			table++
		default:
			other++
		}
	}
	text := fmt.Sprintf("the guest is up after %s", time.Since(g.began).Round(time.Millisecond))
	if table > 0 {
		text += fmt.Sprintf(": it read its SMBIOS table to the end, with %s", count(table, "credential"))
	}
	if other > 0 {
		text += fmt.Sprintf("; that it read %s by %s is not proven", count(other, "credential"), delivery.FwCfg)
	}
	for i, d := range g.r.now.Delivered {
		g.r.now.Delivered[i].Proven = proof(d.Channel)
	}
	g.r.recordReady(vm.NotifyGuest)
	g.r.Log.Info(text, "proven", table, "not_proven", other)
}

func count(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func proof(channel string) state.Proof {
	if channel == string(delivery.SMBIOS) {
		return state.Proven
	}
	return state.Unproven
}

// giveUp ends the waiting for READY=1, and returns false if it is here after all:
// it can come as the limit does.
func (g *guest) giveUp() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isUp {
		return false
	}
	g.over, g.gaveUp = true, true
	g.r.Log.Error(fmt.Sprintf("the guest did not say within %s that it is up", g.r.Spec.StartTimeout))
	return true
}

// close passes nothing on any more.
func (g *guest) close() {
	if g.timer != nil {
		g.timer.Stop()
	}
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
}

// silent is the failure of a start whose guest never said that it is up; nil if
// it did, if nobody waited for it or wanted it any more, and if it starts anew.
func (g *guest) silent(ctx context.Context, exit hypervisor.Exit) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.up == nil || g.isUp || ctx.Err() != nil:
		return nil
	case g.gaveUp:
		return &FailedError{Op: "start", Err: errors.New(g.noReady()), Do: g.whyNoReady()}
	case exit.Reboot || !exit.Clean:
		return nil
	}
	return &FailedError{
		Op: "start", Err: errors.New("the guest powered off before it said that it is up"),
		Do: "its console says why; write notify: boot for a guest that is to end by itself",
	}
}

func (g *guest) noReady() string {
	text := fmt.Sprintf("no READY=1 from the guest within %s (start-timeout)", g.r.Spec.StartTimeout)
	if g.said != "" {
		text += fmt.Sprintf("; the last it said was %q", g.said)
	}
	return text
}

func (g *guest) whyNoReady() string {
	why := []string{
		"its console says how far it came",
		fmt.Sprintf("is its systemd really %d (guest: {systemd: …})? An older one reads only the first 4096 bytes of a structure and never finds the address", g.r.Spec.Guest.Systemd),
		"its kernel needs vmw_vsock_virtio_transport",
		"or write notify: boot",
	}
	return strings.Join(why, "; ")
}
