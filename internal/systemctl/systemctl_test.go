// SPDX-License-Identifier: Apache-2.0

package systemctl

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The output of systemd 252, shortened, with a status text that a guest chose.
const shown = `Type=notify
MainPID=812
NRestarts=1
Result=success
ExecMainStatus=0
InvocationID=3b1e0b3d6e0c4d1f9f5f0b6f3c1d2e4a
ControlGroup=/system.slice/system-vmcred.slice/vmcred@a.service
StatusText=ActiveState=failed
Id=vmcred@a.service
LoadState=loaded
ActiveState=active
SubState=running
ActiveEnterTimestamp=@1700000000

MainPID=0
Id=gone.service
LoadState=not-found
ActiveState=inactive
SubState=dead
ActiveEnterTimestamp=
`

func TestParse(t *testing.T) {
	units, err := parse(shown)
	if err != nil || len(units) != 2 {
		t.Fatalf("%v %v", units, err)
	}
	want := Unit{
		Name: "vmcred@a.service", Load: "loaded", Active: "active", Sub: "running", MainPID: 812,
		Invocation: "3b1e0b3d6e0c4d1f9f5f0b6f3c1d2e4a", ControlGroup: "/system.slice/system-vmcred.slice/vmcred@a.service",
		StatusText: "ActiveState=failed", Result: "success", Restarts: 1, Since: time.Unix(1700000000, 0),
	}
	if got := units["vmcred@a.service"]; got != want || !got.Up() {
		t.Errorf("%+v", got)
	}
	if got := units["gone.service"]; got.Load != "not-found" || got.Up() || !got.Since.IsZero() {
		t.Errorf("%+v", got)
	}
	if _, err := parse("Id=x\nMainPID=many\n"); err == nil {
		t.Error("a number that is none is taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(shown)
	f.Add("Id=\n\n\nId=a")
	f.Fuzz(func(t *testing.T, text string) {
		units, err := parse(text)
		for name, u := range units {
			if err != nil || name == "" || u.Name != name {
				t.Errorf("%q gives %+v %v", text, u, err)
			}
		}
	})
}

// standIn is a systemctl that says what it was called with.
func standIn(t *testing.T, script string) *Systemd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "systemctl")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Systemd{path}
}

func TestCalls(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	s := standIn(t, `echo "Id=$*"; echo "SubState=$DBUS_SYSTEM_BUS_ADDRESS"; echo said >&2`)
	units, err := s.Show(t.Context(), "a.service", "--b")
	if err != nil {
		t.Fatal(err)
	}
	for name, u := range units {
		if !strings.HasSuffix(name, " -- a.service --b") || u.Sub != "" {
			t.Errorf("called with %q, and %q of our environment", name, u.Sub)
		}
	}
	if units, err := s.Show(t.Context()); err != nil || units != nil {
		t.Errorf("about no unit: %v %v", units, err)
	}
	var out, log bytes.Buffer
	if err := errors.Join(s.Stop(t.Context(), "a", &out, &log), s.BeginStop(t.Context(), "a", &out, &log), s.Terminate(t.Context(), "a", &out, &log)); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"Id=stop -- a\n", "Id=stop --no-block -- a\n", "Id=kill --kill-who=main --signal=SIGTERM -- a\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
	if log.String() != "said\nsaid\nsaid\n" {
		t.Errorf("its words: %q", log.String())
	}
}

func TestFailureSaysWhatSystemctlSaid(t *testing.T) {
	s := standIn(t, `printf 'no bus\033[31m\n' >&2; exit 1`)
	_, err := s.Show(t.Context(), "a")
	if err == nil || err.Error() != `systemctl show: exit status 1: "no bus\x1b[31m"` {
		t.Errorf("%v", err)
	}
}

func TestFind(t *testing.T) {
	_, err := Find("relative:/nowhere")
	if err == nil {
		t.Error("found on a PATH that has none")
	}
	if _, e := os.Stat(booted); e != nil && !errors.Is(err, ErrNone) {
		t.Errorf("without a systemd: %v", err)
	}
}
