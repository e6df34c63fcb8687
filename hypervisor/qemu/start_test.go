// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

// staged is a driver and a launch whose QEMU is this test binary in that part.
func staged(t *testing.T, part string) (*Driver, hypervisor.Launch, *output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{Path: self, StartTimeout: 20 * time.Second})
	sp := spec(kernelFile(t, t.TempDir()))
	sp.Name = part
	info := hypervisor.Info{Path: self, Version: "7.2.0", Accel: "tcg"}
	l, out := launchOf(t, d, info, sp, values(t, map[string]string{"A": "alpha", "B=": "beta"}))
	return d, l, out
}

func TestStartFails(t *testing.T) {
	for part, want := range map[string]struct{ text, hint string }{
		playDies:     {"exit status 1): qemu-system-x86_64: ?[31mno such thing?; qemu-system-x86_64: really", ""},
		playDiesLate: {`"write" lock`, "another VM"},
		playGarbage:  {"not a QMP message", ""},
		playRefuses:  {"cont: not ?[31mtoday?;vmcred: all is well", ""},
	} {
		t.Run(part, func(t *testing.T) {
			d, l, out := staged(t, part)
			before := descriptorsOpen(t)
			m, err := d.Start(t.Context(), l)
			if err == nil {
				t.Fatal("it started", m)
			}
			if !strings.Contains(err.Error()+out.log.String(), want.text) || !strings.Contains(hintOf(err), want.hint) {
				t.Errorf("%v (hint %q), want %+v", err, hintOf(err), want)
			}
			if strings.ContainsAny(err.Error(), "\x1b\x07\n") {
				t.Errorf("control characters in %q", err)
			}
			if after := descriptorsOpen(t); !slices.Equal(before, after) {
				t.Errorf("descriptors before %v, after %v", before, after)
			}
		})
	}
}

// TestStartHangs: the context's end ends the start, and QEMU with it.
func TestStartHangs(t *testing.T) {
	for _, part := range []string{playSilent, playDeaf} {
		t.Run(part, func(t *testing.T) {
			d, l, _ := staged(t, part)
			ctx, cancel := context.WithCancel(t.Context())
			deliver := l.Deliver
			l.Deliver = func(ctx context.Context) (*delivery.Payload, error) {
				time.AfterFunc(50*time.Millisecond, cancel)
				return deliver(ctx)
			}
			before := descriptorsOpen(t)
			if _, err := d.Start(ctx, l); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if after := descriptorsOpen(t); !slices.Equal(before, after) {
				t.Errorf("descriptors before %v, after %v", before, after)
			}
		})
	}
	t.Run("by itself", func(t *testing.T) {
		d, l, _ := staged(t, playSilent)
		d.o.StartTimeout = 100 * time.Millisecond
		if _, err := d.Start(t.Context(), l); err == nil || !strings.Contains(err.Error(), "did not answer") {
			t.Errorf("got %v", err)
		}
	})
}

// TestNoValues: what fails before QEMU is started asks for no value, and a
// refusal to give them starts no QEMU.
func TestNoValues(t *testing.T) {
	d, l, _ := staged(t, playWell)
	refusal := errors.New("the record could not be written")
	l.Deliver = func(context.Context) (*delivery.Payload, error) { return nil, refusal }
	before := descriptorsOpen(t)
	if _, err := d.Start(t.Context(), l); !errors.Is(err, refusal) {
		t.Errorf("got %v", err)
	}
	l.Deliver = func(context.Context) (*delivery.Payload, error) {
		t.Error("asked for values")
		return nil, refusal
	}
	l.Spec.Boot.Kernel += "-gone"
	var problems vm.Problems
	if _, err := d.Start(t.Context(), l); !errors.As(err, &problems) || problems[0].Field != "boot.kernel" {
		t.Errorf("got %v", err)
	}
	if after := descriptorsOpen(t); !slices.Equal(before, after) {
		t.Errorf("descriptors before %v, after %v", before, after)
	}
}

// TestOtherValues: a payload that is not what was planned starts nothing.
func TestOtherValues(t *testing.T) {
	d, l, _ := staged(t, playWell)
	plan, _ := delivery.Make(d.Offers(l.Spec, l.Info), delivery.Guest{}, nil)
	l.Deliver = func(context.Context) (*delivery.Payload, error) { return plan.Encode(credential.NewSet()) }
	if _, err := d.Start(t.Context(), l); err == nil || !strings.Contains(err.Error(), "planned were 1 and 1") {
		t.Errorf("got %v", err)
	}
}

func TestEnds(t *testing.T) {
	running := []hypervisor.EventKind{hypervisor.EventDelivered, hypervisor.EventRunning}
	for part, want := range map[string]struct {
		exit   hypervisor.Exit
		events []hypervisor.EventKind
	}{
		playWell:    {hypervisor.Exit{Clean: true}, append(running[:2:2], hypervisor.EventPowerOff)},
		playTrips:   {hypervisor.Exit{Code: 7}, append(running[:2:2], hypervisor.EventPowerOff)},
		playReboots: {hypervisor.Exit{Reboot: true}, append(running[:2:2], hypervisor.EventReboot)},
		playGivesUp: {hypervisor.Exit{Code: -1, Signal: "SIGKILL", Detail: "QEMU gave up the guest: internal error of the accelerator"}, running},
		playCrashes: {hypervisor.Exit{Code: -1, Signal: "SIGKILL"}, running},
	} {
		t.Run(part, func(t *testing.T) {
			d, l, _ := staged(t, part)
			m, err := d.Start(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			exit, events := end(t, m)
			if exit != want.exit || !slices.Equal(events, want.events) {
				t.Errorf("%+v %v, want %+v %v", exit, events, want.exit, want.events)
			}
			if err := m.Shutdown(t.Context()); err != nil && want.exit.Clean {
				t.Errorf("the power button of a VM that is off: %v", err)
			}
			if err := errors.Join(m.Quit(t.Context()), m.Kill()); err != nil {
				t.Errorf("ending it again: %v", err)
			}
		})
	}
}

func TestStops(t *testing.T) {
	for name, tc := range map[string]struct {
		stop func(hypervisor.Machine) error
		want hypervisor.Exit
	}{
		"shutdown": {func(m hypervisor.Machine) error { return m.Shutdown(context.Background()) }, hypervisor.Exit{Clean: true}},
		"quit":     {func(m hypervisor.Machine) error { return m.Quit(context.Background()) }, hypervisor.Exit{Clean: true}},
		"kill":     {func(m hypervisor.Machine) error { return m.Kill() }, hypervisor.Exit{Code: -1, Signal: "SIGKILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			d, l, _ := staged(t, playStays)
			m, err := d.Start(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.stop(m); err != nil {
				t.Error(err)
			}
			if exit, _ := end(t, m); exit != tc.want {
				t.Errorf("%+v, want %+v", exit, tc.want)
			}
		})
	}
}

// TestChatter: a QEMU that says too much is heard, but not all of it.
func TestChatter(t *testing.T) {
	d, l, out := staged(t, playChatters)
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	exit, _ := end(t, m)
	log := out.log.String()
	if n := strings.Count(log, "\n"); n < 10 || n > 1000 {
		t.Errorf("%d lines logged", n)
	}
	for line := range strings.Lines(log) {
		if len(line) > 1000 {
			t.Fatalf("a line of %d bytes", len(line))
		}
	}
	if !strings.HasPrefix(exit.Detail, "line 4999 ") {
		t.Errorf("last words %.40q", exit.Detail)
	}
}

// stops is how often playFloods stops the guest.
const stops = 5000

// TestStopFlood: a QEMU that is taken over costs no memory for each of its
// events, and cannot hold up the end.
func TestStopFlood(t *testing.T) {
	d, l, _ := staged(t, playFloods)
	before := runtime.NumGoroutine()
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	for e := range m.Events() { // in order: the last one of the flood
		if e.Kind == hypervisor.EventPowerOff {
			break
		}
	}
	if n := runtime.NumGoroutine() - before; n > 50 {
		t.Errorf("%d goroutines more than before, after %d events", n, stops)
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
}

// TestBlockedReaders: neither a log nor a console that nobody reads holds up an end.
func TestBlockedReaders(t *testing.T) {
	d, l, _ := staged(t, playChatters)
	r, w := io.Pipe()
	l.Log, l.Console = w, w
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if exit, _ := end(t, m); !exit.Clean {
		t.Errorf("%+v", exit)
	}
	_ = r.Close() // lets the abandoned writers go
}
