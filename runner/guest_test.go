// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/ready"
	"github.com/vmcred/vmcred/vm"
)

// say is one message of the guest's, as its PID 1 sends it: it waits until the
// host closes.
func say(l hypervisor.Launch, message string) {
	guest, host := net.Pipe()
	go l.Ports[notifyPort(l.Spec.Vsock)](host)
	_, _ = guest.Write([]byte(message))
	_, _ = io.Copy(io.Discard, guest)
}

func notifying(t *testing.T, d *scripted) *fixture {
	t.Helper()
	f := setUp(t, d, map[string]string{"host-a": "value"})
	f.o.Spec.Notify, f.o.Spec.Vsock, f.o.Spec.StartTimeout = vm.NotifyGuest, &vm.Vsock{CID: 7}, time.Minute
	f.o.Spec.Guest.Systemd = 257
	return f
}

// READY=1 counts when it comes, and what a guest may not say never reaches systemd.
func TestReadyFromTheGuest(t *testing.T) {
	d := &scripted{}
	d.runs = func(_ int, l hypervisor.Launch, m *machine) {
		say(l, "MAINPID=1\nEXTEND_TIMEOUT_USEC=9\nSTATUS=half \x1b[31mway\n")
		say(l, "READY=1\nSTATUS=Startup finished\n")
		say(l, "READY=1\nX_SYSTEMD_UNIT_ACTIVE=default.target\n")
		m.end(hypervisor.Exit{Clean: true})
	}
	var table []string
	d.booted = func(_ int, p *delivery.Payload) {
		for _, s := range p.Strings {
			table = append(table, s[0].Text)
		}
	}
	f := notifying(t, d)
	if out, err := Run(t.Context(), f.o); err != nil || out != Ended {
		t.Fatalf("%v %v", out, err)
	}
	if last := table[len(table)-1]; !strings.Contains(last, credential.NotifySocket+"=vsock-stream:2:1000000007") {
		t.Errorf("the last string is %q", last)
	}
	states := strings.Join(f.states, "\n--\n")
	for _, never := range []string{"MAINPID", "EXTEND_TIMEOUT_USEC=9", "\x1b"} {
		if strings.Contains(states, never) {
			t.Errorf("%q reached systemd:\n%s", never, states)
		}
	}
	for _, want := range []string{
		"STATUS=starting x\nEXTEND_TIMEOUT_USEC=150000000", "STATUS=guest: half [31mway",
		"READY=1\nSTATUS=guest: Startup finished", "X_SYSTEMD_UNIT_ACTIVE=default.target",
	} {
		if !strings.Contains(states, want) {
			t.Errorf("%q did not reach systemd:\n%s", want, states)
		}
	}
	if strings.Count(states, "READY=1") != 1 {
		t.Errorf("READY is told more than once:\n%s", states)
	}
	if log := f.log.String(); !strings.Contains(log, "read its SMBIOS table to the end, with one credential") || !strings.Contains(log, "MAINPID") {
		t.Errorf("the log:\n%s", log)
	}
}

// A guest can be up before the driver has said that it runs, or as the limit comes.
func TestReadyEarlyAndLate(t *testing.T) {
	f := notifying(t, &scripted{})
	g := (&run{Options: f.o}).newGuest()
	defer g.close()
	g.hear(ready.Message{Ready: true})
	g.runs()
	if want := []string{"READY=1\nSTATUS=running"}; !slices.Equal(f.states, want) {
		t.Errorf("systemd is told %q, want %q", f.states, want)
	}
	if g.giveUp() || g.gaveUp || g.over {
		t.Error("a guest that is up is given up")
	}
}

// A guest that never says it ends the start, which says so.
func TestNoReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &scripted{ignore: []string{"power button"}}
		d.runs = func(_ int, l hypervisor.Launch, _ *machine) { say(l, "STATUS=still\n") }
		f := notifying(t, d)
		began := time.Now()
		_, err := Run(t.Context(), f.o)
		var failed *FailedError
		if !errors.As(err, &failed) || failed.Op != "start" || failed.Hint() == "" {
			t.Fatalf("%v", err)
		}
		for _, want := range []string{"no READY=1 from the guest within 1m0s", `the last it said was "still"`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		// start-timeout, stop-timeout, and what it takes to kill.
		if states := strings.Join(f.states, "\n"); !strings.Contains(states, "EXTEND_TIMEOUT_USEC=150000000") {
			t.Errorf("systemd does not wait as long as we do:\n%s", states)
		}
		if took := time.Since(began); took != 2*time.Minute {
			t.Errorf("it took %v: want start-timeout and stop-timeout", took)
		}
		if !slices.Equal(d.asked, []string{"power button", "quit"}) {
			t.Errorf("asked: %v", d.asked)
		}
	})
}

func TestEndsBeforeReady(t *testing.T) {
	for name, tc := range map[string]struct {
		exits []hypervisor.Exit
		boots int
		want  string
	}{
		"powers off": {[]hypervisor.Exit{{Clean: true}}, 1, "powered off before it said that it is up"},
		"crashes":    {[]hypervisor.Exit{{Code: 1}}, 1, "ended by itself with exit status 1"},
		"reboots":    {[]hypervisor.Exit{{Reboot: true}, {Clean: true}}, 2, "powered off before it said that it is up"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &scripted{exits: tc.exits}
			f := notifying(t, d)
			_, err := Run(t.Context(), f.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) || d.boots != tc.boots {
				t.Errorf("%d boots, %v", d.boots, err)
			}
		})
	}
}

// Who stops a VM that is not up yet gets no error for it.
func TestStoppedBeforeReady(t *testing.T) {
	d := &scripted{}
	f := notifying(t, d)
	ctx, cancel := context.WithCancel(t.Context())
	d.runs = func(_ int, l hypervisor.Launch, _ *machine) {
		cancel()
		say(l, "READY=1\n")
	}
	if out, err := Run(ctx, f.o); err != nil || out != Ended {
		t.Errorf("%v %v", out, err)
	}
}
