// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// scripted is a driver whose machines live as the test says. It stands in for
// the timing of a VMM only; what a real one does is the conformance suite's.
type scripted struct {
	mu       sync.Mutex
	asked    []string
	problems []vm.Problem
	startErr error
	lose     string                                          // the share that every boot loses
	ignore   []string                                        // what the machine does not react to
	deaf     bool                                            // and asking is an error
	exits    []hypervisor.Exit                               // one a boot; none left: runs until asked to stop
	booted   func(boot int, p *delivery.Payload)             // called with what was delivered
	runs     func(boot int, l hypervisor.Launch, m *machine) // called in a goroutine once the machine runs
	boots    int
}

func (d *scripted) Probe(context.Context) (hypervisor.Info, error) {
	return hypervisor.Info{Path: "/x", Version: "1", Accel: "tcg", Why: "a test"}, nil
}
func (d *scripted) Check(*vm.Spec, hypervisor.Info) []vm.Problem { return d.problems }
func (d *scripted) Offers(*vm.Spec, hypervisor.Info) []delivery.Offer {
	return []delivery.Offer{{Channel: delivery.SMBIOS, TotalMax: 300, StructMax: 4096, Empty: true, Raw: true, Why: "a test's table"}}
}

func (d *scripted) Command(*vm.Spec, hypervisor.Info, delivery.Plan) []string { return []string{"/x"} }

func (d *scripted) Start(ctx context.Context, l hypervisor.Launch) (hypervisor.Machine, error) {
	if d.startErr != nil {
		return nil, d.startErr
	}
	p, err := l.Deliver(ctx)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if d.booted != nil {
		d.booted(d.boots, p)
	}
	m := &machine{d: d, events: make(chan hypervisor.Event, 4), gone: make(chan struct{})}
	if d.lose != "" {
		m.events <- hypervisor.Event{Kind: hypervisor.EventShareLost, Detail: d.lose}
	}
	if d.boots < len(d.exits) {
		m.end(d.exits[d.boots])
	}
	if d.runs != nil {
		go d.runs(d.boots, l, m)
	}
	d.boots++
	return m, nil
}

type machine struct {
	d      *scripted
	events chan hypervisor.Event
	gone   chan struct{}
	once   sync.Once
	exit   hypervisor.Exit
}

func (m *machine) end(e hypervisor.Exit) {
	m.once.Do(func() { m.exit = e; close(m.events); close(m.gone) })
}

func (m *machine) ask(what string) error {
	m.d.mu.Lock()
	m.d.asked = append(m.d.asked, what)
	m.d.mu.Unlock()
	if !slices.Contains(m.d.ignore, what) {
		m.end(hypervisor.Exit{Clean: what != "kill", Signal: map[bool]string{true: "killed"}[what == "kill"]})
	} else if m.d.deaf {
		return errors.New("nobody answers")
	}
	return nil
}
func (m *machine) Events() <-chan hypervisor.Event { return m.events }
func (m *machine) Shutdown(context.Context) error  { return m.ask("power button") }
func (m *machine) Quit(context.Context) error      { return m.ask("quit") }
func (m *machine) Kill() error                     { return m.ask("kill") }
func (m *machine) PID() int                        { return 1 }
func (m *machine) Confinement() string             { return "none" }
func (m *machine) Wait(ctx context.Context) (hypervisor.Exit, error) {
	select {
	case <-m.gone:
		return m.exit, nil
	case <-ctx.Done():
		return hypervisor.Exit{}, ctx.Err()
	}
}

type fixture struct {
	o      Options
	dir    string
	log    bytes.Buffer
	states []string
	record record
}

func setUp(t *testing.T, d *scripted, values map[string]string) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	spec := &vm.Spec{Name: "a", Hypervisor: "x", Guest: vm.Guest{Systemd: 252}, StopTimeout: time.Minute, File: "a.yaml"}
	for host, v := range values {
		if err := os.WriteFile(filepath.Join(f.dir, host), []byte(v), 0o400); err != nil {
			t.Fatal(err)
		}
		spec.Credentials = append(spec.Credentials, vm.Credential{Host: host, Guest: credential.GuestName(host), Source: vm.Source{Kind: vm.SourceUnit}})
	}
	slices.SortFunc(spec.Credentials, func(a, b vm.Credential) int { return strings.Compare(a.Host, b.Host) })
	f.o = Options{
		Spec: spec, Driver: d, Root: filepath.Join(t.TempDir(), "run"), Console: io.Discard, VMMLog: io.Discard,
		Open: func(_ context.Context, a *secret.Arena) (credential.Source, error) {
			return credential.Directory(a, f.dir)
		},
		Log:    slog.New(slog.NewTextHandler(&f.log, nil)),
		Notify: func(s string) { f.states = append(f.states, s) },
		Force:  make(chan struct{}),
	}
	f.o.Recorder = &f.record
	return f
}

func problemsOf(t *testing.T, err error) string {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	var b strings.Builder
	for _, p := range r.Problems {
		if p.Hint == "" {
			t.Errorf("no hint for %q", p.Error())
		}
		b.WriteString(p.Error() + "\n")
	}
	return b.String()
}

func TestEverythingWrongIsSaidAtOnceAndNothingStarts(t *testing.T) {
	d := &scripted{}
	f := setUp(t, d, map[string]string{"host-empty": "", "host-ok": "value"})
	f.o.Spec.Credentials = append(f.o.Spec.Credentials,
		vm.Credential{Host: "host-gone", Guest: "HOST_GONE", Source: vm.Source{Kind: vm.SourceUnit}},
		vm.Credential{Host: "host-var", Guest: "HOST_VAR", Source: vm.Source{Kind: vm.SourceVar, Path: "g/f"}})
	d.problems = []vm.Problem{{Field: "shares", Message: "not here", Hint: "leave it out"}}
	_, err := Run(t.Context(), f.o)
	got := problemsOf(t, err)
	for _, want := range []string{"host-empty: its value is empty", "host-gone: declared, but", "host-var: nothing reads var: here yet", "shares: not here"} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in:\n%s", want, got)
		}
	}
	if d.boots != 0 {
		t.Error("it was started all the same")
	}
}

func TestOverBudgetIsRefused(t *testing.T) {
	for n, ok := range map[int]bool{150: true, 400: false} {
		d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
		f := setUp(t, d, map[string]string{"host-a": strings.Repeat("x", n)})
		_, err := Run(t.Context(), f.o)
		if ok && err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if !ok && !strings.Contains(problemsOf(t, err), "credentials.host-a") {
			t.Errorf("%d bytes: %v does not name the credential", n, err)
		}
	}
}

func TestEmptyIsAllowedWhenTheFileSaysSo(t *testing.T) {
	d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
	f := setUp(t, d, map[string]string{"host-a": ""})
	f.o.Spec.Credentials[0].AllowEmpty = true
	if _, err := Run(t.Context(), f.o); err != nil {
		t.Fatal(err)
	}
}

func TestWarnings(t *testing.T) {
	d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
	f := setUp(t, d, map[string]string{"host-a": "line\n"})
	if err := os.WriteFile(filepath.Join(f.dir, "host-extra"), []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), f.o); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"host-extra, which the VM's file does not declare", "ends in a newline"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("no warning %q in:\n%s", want, f.log.String())
		}
	}
}

// A reboot is a new start with the values of then; in a unit it ends the run.
func TestReboot(t *testing.T) {
	var seen []string
	d := &scripted{exits: []hypervisor.Exit{{Reboot: true}, {Clean: true}}}
	f := setUp(t, d, map[string]string{"host-a": "first"})
	d.booted = func(boot int, p *delivery.Payload) {
		var buf strings.Builder
		for _, piece := range p.Strings[0] {
			buf.WriteString(piece.Text)
			if piece.Secret != nil {
				_ = piece.Secret.Use(func(b []byte) error { buf.Write(b); return nil })
			}
		}
		seen = append(seen, buf.String())
		path := filepath.Join(f.dir, "host-a")
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("second"), 0o400)); err != nil {
			t.Error(err)
		}
	}
	out, err := Run(t.Context(), f.o)
	if err != nil || out != Ended || len(seen) != 2 || seen[0] == seen[1] {
		t.Errorf("out %v, err %v, boots saw %d different values", out, err, len(seen))
	}
	d = &scripted{exits: []hypervisor.Exit{{Reboot: true}}}
	f = setUp(t, d, map[string]string{"host-a": "first"})
	f.o.OneBoot = true
	if out, err = Run(t.Context(), f.o); err != nil || out != Rebooted {
		t.Errorf("in a unit: %v %v", out, err)
	}
}

// A guest that reboots at once is started anew at once a few times, and then
// ever more slowly; one that ran for a while begins anew. Stopping ends a pause.
func TestRebootLoopSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &scripted{exits: slices.Repeat([]hypervisor.Exit{{Reboot: true}}, 100)}
		f := setUp(t, d, map[string]string{"host-a": "x"})
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at []time.Duration
		d.booted = func(boot int, _ *delivery.Payload) {
			at = append(at, time.Since(began))
			if boot == 6 {
				time.AfterFunc(time.Second, cancel)
			}
		}
		out, err := Run(ctx, f.o)
		want := []time.Duration{0, 0, 0, 0, time.Second, 3 * time.Second, 7 * time.Second}
		if err != nil || out != Ended || !slices.Equal(at, want) || time.Since(began) != 8*time.Second {
			t.Errorf("%v %v after %v: boots at %v, want %v", out, err, time.Since(began), at, want)
		}
		if !strings.Contains(f.log.String(), "the guest reboots again and again: waiting 4s") {
			t.Errorf("the log does not say why it waits:\n%s", f.log.String())
		}
	})
	p := pace{short: 50}
	if p.next(0) != longestPause || p.next(shortRound) != 0 || p.next(0) != 0 {
		t.Error("a pause is too long, or a long round does not count")
	}
}

func TestVMMThatDiesIsAFailure(t *testing.T) {
	d := &scripted{exits: []hypervisor.Exit{{Code: -1, Signal: "killed", Detail: "last words"}}}
	_, err := Run(t.Context(), setUp(t, d, nil).o)
	var failed *FailedError
	if !errors.As(err, &failed) || failed.Hint() == "" || !strings.Contains(err.Error(), "signal killed: last words") {
		t.Errorf("got %v", err)
	}
	d = &scripted{startErr: errors.New("no greeting")}
	if _, err = Run(t.Context(), setUp(t, d, nil).o); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
}

// Stopping asks the guest, then the VMM, then kills; each only if needed.
func TestStop(t *testing.T) {
	for _, c := range []struct{ ignore, want []string }{
		{nil, []string{"power button"}},
		{[]string{"power button"}, []string{"power button", "quit"}},
		{[]string{"power button", "quit"}, []string{"power button", "quit", "kill"}},
	} {
		d := &scripted{ignore: c.ignore}
		f := setUp(t, d, map[string]string{"host-a": "x"})
		force := make(chan struct{})
		f.o.Force = force
		if len(c.ignore) > 0 {
			close(force) // the impatient user: no step waits its full time
		}
		ctx, cancel := context.WithCancel(t.Context())
		f.o.Notify = func(s string) {
			f.states = append(f.states, s)
			if strings.HasPrefix(s, "READY=1") {
				cancel()
			}
		}
		out, err := Run(ctx, f.o)
		if err != nil || out != Ended || !slices.Equal(d.asked, c.want) {
			t.Errorf("ignoring %v: %v %v, asked %v, want %v", c.ignore, out, err, d.asked, c.want)
		}
		if !slices.ContainsFunc(f.states, func(s string) bool { return strings.HasPrefix(s, "STOPPING=1") }) {
			t.Errorf("systemd was not told: %q", f.states)
		}
	}
}

// A VM whose share hangs is ended, the power button first, and that is a failure.
func TestLostShareEndsTheVM(t *testing.T) {
	d := &scripted{lose: "the virtiofsd of share data ended (SIGKILL)"}
	f := setUp(t, d, map[string]string{"host-a": "x"})
	_, err := Run(t.Context(), f.o)
	var failed *FailedError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), d.lose) || !slices.Equal(d.asked, []string{"power button"}) {
		t.Errorf("%v, asked %v", err, d.asked)
	}
}

// What takes longer than a second is said: at the start, and at the end.
func TestWhatTakesLongIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &scripted{ignore: []string{"power button", "quit"}}
		f := setUp(t, d, map[string]string{"host-a": "x"})
		said := make(chan string, 20)
		f.o.Log = slog.New(slog.NewTextHandler(sayTo(said), nil))
		hear := func(text string) {
			for line := range said {
				if strings.Contains(line, text) {
					return
				}
			}
		}
		d.booted = func(int, *delivery.Payload) { hear("still starting x") }
		ctx, cancel := context.WithCancel(t.Context())
		f.o.Notify = func(s string) {
			if strings.HasPrefix(s, "READY=1") {
				cancel()
			}
		}
		if _, err := Run(ctx, f.o); err != nil {
			t.Error(err)
		}
		hear("pressing the power button, the guest has 1m0s")
		hear("the guest did not power off in 1m0s: asking x to end")
		hear("x did not end in 5s: killing it")
	})
}

// sayTo passes each line of a log on.
type sayTo chan<- string

func (c sayTo) Write(b []byte) (int, error) {
	c <- string(b)
	return len(b), nil
}

// Who stops a unit's VM is systemd: any other end would make it start again.
func TestWhoRunsTheVMAlreadyIsStoppedByItsOwn(t *testing.T) {
	for hint, busy := range map[string]*state.BusyError{
		"stop the running one first: systemctl stop x@y.service":                     {Name: "y", ByUnit: true},
		"stop the running one first (vmcred stop y, or Ctrl-C where it was started)": {Name: "y", PID: 7},
	} {
		var refused *RefusedError
		err := acquireError(&vm.Spec{Name: "y", Unit: "x@y.service"}, &state.SetupError{Err: busy})
		if !errors.As(err, &refused) || refused.Problems[0].Hint != hint {
			t.Errorf("%v, want the hint %q", err, hint)
		}
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	f := setUp(t, &scripted{}, map[string]string{"host-a": "x"})
	ctx, cancel := context.WithCancel(t.Context())
	f.o.Notify = func(s string) {
		if !strings.HasPrefix(s, "READY=1") {
			return
		}
		second := f.o
		second.Notify = func(string) {}
		_, err := Run(t.Context(), second)
		if got := problemsOf(t, err); !strings.Contains(got, "runs already") {
			t.Errorf("second start: %s", got)
		}
		cancel()
	}
	if _, err := Run(ctx, f.o); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(f.o.Root); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Whatever is logged, no value is.
func TestNoValueIsSaid(t *testing.T) {
	const canary = "CANARY-5b1d0c"
	d := &scripted{exits: []hypervisor.Exit{{Clean: true}}}
	f := setUp(t, d, map[string]string{"host-a": canary + "\n", "host-b": canary})
	if _, err := Run(t.Context(), f.o); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(f.log.String()+strings.Join(f.states, "\n"), canary) {
		t.Error("a value is in the log")
	}
	if !strings.Contains(f.log.String(), "delivered host-b → HOST_B, 13 bytes by smbios") {
		t.Errorf("the log does not say what was delivered:\n%s", f.log.String())
	}
}

// A VMM that cannot even be asked does not get the time that a guest gets.
func TestAVMMThatCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &scripted{ignore: []string{"power button"}, deaf: true}
		f := setUp(t, d, map[string]string{"host-a": "x"})
		ctx, cancel := context.WithCancel(t.Context())
		d.booted = func(int, *delivery.Payload) { cancel() }
		began := time.Now()
		if out, err := Run(ctx, f.o); err != nil || out != Ended {
			t.Errorf("%v %v", out, err)
		}
		if took := time.Since(began); took != notAsked {
			t.Errorf("it took %v, want %v", took, notAsked)
		}
		if !strings.Contains(f.log.String(), "did not power off in 5s") {
			t.Errorf("the log does not say how long it was waited:\n%s", f.log.String())
		}
	})
}
