// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/leak"
)

// Every argument, variable, byte written and path of the program and of the
// hypervisor it starts, for each way a value gets in. Nothing that lives for
// however short a time escapes this one.
func TestNoValueLeaksUnderStrace(t *testing.T) {
	needRoot(t, "it traces a process that makes itself undumpable")
	needCommands(t, "strace")
	onEach(t, noValueLeaksUnderStrace)
	h := newHostOf(t, qemu(), 0, qemu().few()[:2])
	t.Run("control: the way by hand", func(t *testing.T) { wantByHandFound(t, h) })
	t.Run("control: a file that lives a moment", func(t *testing.T) {
		s := h.search(t)
		short := filepath.Join(h.dir, "short")
		trace(t, s, leak.Trace{Argv: []string{"bash", "-c", `read -r v <"$1"; echo "$v" >"$2"; rm "$2"`, "bash", filepath.Join(h.creds, h.all[0].name), short}})
		if !slices.ContainsFunc(s.Report().Findings, func(f leak.Finding) bool {
			return f.Place.Kind == leak.Write && f.Place.Target == leak.ToFile && f.Place.Path == short
		}) {
			t.Errorf("not found:\n%s", reportText(t, s))
		}
	})
}

func noValueLeaksUnderStrace(t *testing.T, k kind) {
	h := newHostOf(t, k, 0, k.few())
	makeUser(t, h.name)
	// These start nothing: each way in is tried with one hypervisor, and one with each.
	quiet := []string{"plan", "plan --json", "plan --command", "check", "check --json"}
	for i, way := range ways() {
		t.Run("run "+way, func(t *testing.T) {
			s, out := straced(t, h, way, "run")
			if !strings.Contains(out, probe.Last) {
				t.Errorf("the guest did not report: %s", out)
			}
			wantClean(t, s)
			// What the program writes to where they are meant to go is seen, or seen to be
			// unreadable: so this search does look at what is written.
			r := s.Report()
			for _, what := range k.payload() {
				if !slices.ContainsFunc(r.Meant, func(f leak.Finding) bool { return f.Meant == what.Name }) {
					t.Errorf("no value was seen on its way to %s:\n%s", what.Name, reportText(t, s))
				}
			}
			wantOneSocket(t, r)
			h.clean(t)
		})
		if i > 0 && !k.files {
			continue
		}
		for _, command := range quiet {
			t.Run(command+" "+way, func(t *testing.T) {
				s, _ := straced(t, h, way, strings.Fields(command)...)
				wantClean(t, s)
				if r := s.Report(); len(r.Meant) != 0 {
					t.Errorf("it writes values somewhere:\n%s", reportText(t, s))
				}
			})
		}
	}
}

// wantOneSocket: if values go over a connection it is one, the hypervisor's, which
// nobody but its reader is at the other end of.
func wantOneSocket(t *testing.T, r *leak.Report) {
	t.Helper()
	ends := map[string]bool{}
	for _, f := range r.Meant {
		if f.Place.Target == leak.ToSocket {
			ends[f.Place.Path] = true
		}
	}
	if len(ends) > 1 {
		t.Errorf("values went over %d connections: %v", len(ends), ends)
	}
}

// straced runs a command of the program to its end.
func straced(t *testing.T, h *host, way string, command ...string) (*leak.Search, string) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	args, env := h.bySource(t, way, "")
	argv := append([]string{path, command[0], h.file()}, append(command[1:], args...)...)
	s := h.search(t, h.payload()...)
	out := trace(t, s, leak.Trace{Argv: argv, Env: h.env(env...), Dir: "/"})
	if command[0] == "run" {
		if err := s.Files(t.Context(), leak.Files{Roots: []string{filepath.Join(h.dir, "log")}}); err != nil {
			t.Fatal(err)
		}
	}
	return s, out
}

// trace runs a command under strace and returns its standard output.
func trace(t *testing.T, s *leak.Search, tr leak.Trace) string {
	t.Helper()
	out, said, code := traceToEnd(t, s, tr)
	if code != 0 {
		t.Fatalf("it exits %d: %s\n%s", code, out, said)
	}
	return out
}

// traceToEnd runs a command under strace, however it ends.
func traceToEnd(t *testing.T, s *leak.Search, tr leak.Trace) (stdout, stderr string, code int) {
	t.Helper()
	var out, said transcript
	tr.Stdout, tr.Stderr = &out, &said
	got, err := s.Strace(t.Context(), tr)
	if err != nil || got.Unknown != 0 {
		t.Fatalf("%+v, %v: %s\n%s", got, err, out.String(), said.String())
	}
	for _, k := range s.Report().NotSearched {
		// Our own locked pages, and the ring that QEMU waits for its events with.
		if k.Example != "/secretmem" && !strings.HasPrefix(k.What, "io_uring_setup") {
			t.Errorf("not searched: %s: %s, %d times (%s)", k.What, k.Why, k.Count, k.Example)
		}
	}
	return out.String(), said.String(), got.ExitCode
}

// byHand is how it is done without vmcred: bench/seeds.sh.
func byHand(t *testing.T, h *host) *exec.Cmd {
	t.Helper()
	c := exec.Command("../../bench/seeds.sh", "../../leak/testdata/vmm.sh", "uuids=[1]")
	for _, v := range h.all {
		c.Args = append(c.Args, v.name)
	}
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "CREDENTIALS_DIRECTORY=" + h.creds}
	return c
}

func wantByHandFound(t *testing.T, h *host) {
	t.Helper()
	c := byHand(t, h)
	s := h.search(t)
	trace(t, s, leak.Trace{Argv: c.Args, Env: c.Env})
	wantFound(t, s, h, leak.ExecArgv, leak.ExecEnviron)
}

// wantFound wants every value found in places of all these kinds.
func wantFound(t *testing.T, s *leak.Search, h *host, kinds ...leak.Kind) {
	t.Helper()
	findings := s.Report().Findings
	for _, v := range h.all {
		for _, kind := range kinds {
			if !slices.ContainsFunc(findings, func(f leak.Finding) bool {
				return f.Needle == h.name+"/"+v.name && f.Place.Kind == kind
			}) {
				t.Errorf("%s was not found in %s:\n%s", v.name, kind, reportText(t, s))
			}
		}
	}
}

// The whole running system by sampling: while VMs start, one for each way a
// value gets in, and while they run.
func TestNoValueIsInTheRunningSystem(t *testing.T) {
	began := time.Now()
	var list []*host
	var meant []leak.Meant
	for _, k := range each(t) {
		meant = append(meant, k.payload()...)
		for range ways() {
			h := newHost(t, k, k.few())
			list = append(list, h)
			meant = append(meant, leak.Under("where the values come from", h.creds))
		}
	}
	s := searchOf(t, meant, list...)
	all, w := startAll(t, s, list)
	if err := s.System(t.Context(), leak.System{Since: began}); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)
	for _, f := range s.Report().Meant {
		if f.Place.Kind == leak.Descriptor {
			t.Errorf("a memory file still holds a value: %s", f)
		}
	}
	t.Logf("%d rounds, the longest gap %s; %s", w.Rounds, w.Gap, s.Report().Searched)
	for i, r := range all {
		h := list[i]
		status := start(t, h.command(t, nil, "status", "--json", h.file()))
		if code := status.end(t); code != 0 || !strings.Contains(status.out.String(), h.all[0].name) {
			t.Errorf("status exits %d: %s%s", code, status.out.String(), status.err.String())
		}
		said := r.out.String() + r.err.String() + status.out.String() + status.err.String()
		for _, c := range h.all {
			if strings.Contains(said, string(c.value)) {
				t.Errorf("%s was said", c.name)
			}
		}
		r.stop(t)
		h.clean(t)
	}
}

// startAll starts the VMs, one for each way a value gets in, and looks at every
// process again and again until all of their guests have reported.
func startAll(t *testing.T, s *leak.Search, list []*host) (all []*running, w leak.Watched) {
	t.Helper()
	ready, watched := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		w, err = s.Watch(t.Context(), time.Millisecond, func() error {
			<-ready
			return nil
		})
		watched <- err
	}()
	func() {
		defer close(ready) // also when a start fails
		for i, h := range list {
			args, env := h.bySource(t, ways()[i%len(ways())], "wait")
			all = append(all, start(t, h.command(t, env, append([]string{"run", h.file()}, args...)...)))
		}
		for _, r := range all {
			r.awaitGuest(t)
		}
	}()
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	return all, w
}

// The same sampling finds the way by hand, and a file.
func TestSamplingFindsTheWayByHand(t *testing.T) {
	h := newHost(t, qemu(), qemu().few()[:2])
	if os.Geteuid() == 0 {
		h = newHostOf(t, qemu(), 0, h.all) // bash reads the files as whoever tests
	}
	c := byHand(t, h)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, c)
	r.await(t, &r.out, "running\n")
	s := h.search(t)
	short := filepath.Join(h.dir, "short")
	err = errors.Join(os.WriteFile(short, h.all[0].value, 0o600), s.Processes(t.Context()),
		s.Files(t.Context(), leak.Files{Roots: []string{h.dir}}), in.Close())
	if err != nil {
		t.Fatal(err)
	}
	wantFound(t, s, h, leak.Argv, leak.Environ)
	if !slices.ContainsFunc(s.Report().Findings, func(f leak.Finding) bool { return f.Place.Path == short }) {
		t.Error("the file was not found")
	}
	r.end(t)
}
