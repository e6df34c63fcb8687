// SPDX-License-Identifier: Apache-2.0

// Package systemctl asks the host's systemd about units, and stops them, by the
// program of that name: what it says is what an administrator sees, and its own
// rules say who may.
package systemctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// booted is there where systemd is the init, sd_booted(3).
const booted = "/run/systemd/system"

// Systemd is the host's.
type Systemd struct{ path string }

// ErrNone is a host, or a container, that systemd does not run.
var ErrNone = errors.New("systemd does not run here")

// Find finds systemctl on a PATH. The error is ErrNone, or says that the program
// is missing.
func Find(path string) (*Systemd, error) {
	if info, err := os.Lstat(booted); err != nil || !info.IsDir() {
		return nil, ErrNone
	}
	for _, dir := range filepath.SplitList(path) {
		at := filepath.Join(dir, "systemctl")
		if !filepath.IsAbs(at) {
			continue
		}
		if found, err := exec.LookPath(at); err == nil {
			return &Systemd{found}, nil
		}
	}
	return nil, errors.New("systemctl is not on PATH")
}

// Unit is what systemd says about a unit, in its own words (systemctl(1),
// org.freedesktop.systemd1(5)).
type Unit struct {
	Name         string    `json:"name"`
	Load         string    `json:"load"`   // "loaded", "not-found", …
	Active       string    `json:"active"` // "active", "activating", "deactivating", "inactive", "failed", …
	Sub          string    `json:"sub"`    // "running", "auto-restart", …
	MainPID      int       `json:"main_pid"`
	Invocation   string    `json:"invocation"`
	ControlGroup string    `json:"control_group"`
	StatusText   string    `json:"status_text"` // by the service: for a terminal only when cleaned
	Result       string    `json:"result"`      // "success", "exit-code", "start-limit-hit", …
	ExitStatus   int       `json:"exit_status"` // of the main process's last end
	Restarts     int       `json:"restarts"`
	Since        time.Time `json:"since,omitzero"` // when it became active
}

// Up reports whether the unit runs, comes up or goes down.
func (u Unit) Up() bool { return !slices.Contains([]string{"", "inactive", "failed"}, u.Active) }

var properties = strings.Join([]string{
	"Id", "LoadState", "ActiveState", "SubState", "MainPID", "InvocationID", "ControlGroup", "StatusText",
	"Result", "ExecMainStatus", "NRestarts", "ActiveEnterTimestamp",
}, ",")

// Show asks about units, each once; a unit that systemd does not know is not-found
// and inactive.
func (s *Systemd) Show(ctx context.Context, units ...string) (map[string]Unit, error) {
	if len(units) == 0 {
		return nil, nil
	}
	// In this form the names cannot be options, and times are no local time's.
	args := append([]string{"show", "--no-pager", "--timestamp=unix", "--property=" + properties, "--"}, units...)
	var out, said bytes.Buffer
	cmd := s.command(ctx, args, &out, &said)
	if err := cmd.Run(); err != nil {
		return nil, &Error{Op: "show", Err: err, Said: said.String()}
	}
	return parse(out.String())
}

// Stop stops a unit and returns when it has stopped. Output is systemctl's own.
func (s *Systemd) Stop(ctx context.Context, unit string, stdout, stderr io.Writer) error {
	return s.run(ctx, stdout, stderr, "stop", "--", unit)
}

// Restart stops a unit if it runs, starts it, and returns when it has started. Output is
// systemctl's own.
func (s *Systemd) Restart(ctx context.Context, unit string, stdout, stderr io.Writer) error {
	return s.run(ctx, stdout, stderr, "restart", "--", unit)
}

// BeginStop begins to stop a unit, and does not wait.
func (s *Systemd) BeginStop(ctx context.Context, unit string, stdout, stderr io.Writer) error {
	return s.run(ctx, stdout, stderr, "stop", "--no-block", "--", unit)
}

// Terminate sends SIGTERM to a unit's main process.
func (s *Systemd) Terminate(ctx context.Context, unit string, stdout, stderr io.Writer) error {
	return s.run(ctx, stdout, stderr, "kill", "--kill-who=main", "--signal=SIGTERM", "--", unit)
}

func (s *Systemd) run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	if err := s.command(ctx, args, stdout, stderr).Run(); err != nil {
		return &Error{Op: args[0], Err: err}
	}
	return nil
}

// command runs with an environment of its own: nothing of ours tells systemctl
// which systemd to ask.
func (s *Systemd) command(ctx context.Context, args []string, stdout, stderr io.Writer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.path, args...)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd
}

// Error is systemctl's.
type Error struct {
	Op   string
	Err  error
	Said string // what it wrote; empty if that was passed on
}

func (e *Error) Error() string {
	text := fmt.Sprintf("systemctl %s: %v", e.Op, e.Err)
	if said := strings.TrimSpace(e.Said); said != "" {
		text += ": " + strconv.QuoteToGraphic(said)
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// parse reads one block of NAME=VALUE lines for each unit, an empty line between.
func parse(text string) (map[string]Unit, error) {
	units := map[string]Unit{}
	for block := range strings.SplitSeq(text, "\n\n") {
		values := map[string]string{}
		for line := range strings.Lines(block) {
			if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
				values[k] = v
			}
		}
		name := values["Id"]
		if name == "" {
			continue
		}
		u := Unit{
			Name: name, Load: values["LoadState"], Active: values["ActiveState"], Sub: values["SubState"],
			Invocation: values["InvocationID"], ControlGroup: values["ControlGroup"], StatusText: values["StatusText"], Result: values["Result"],
		}
		for key, to := range map[string]*int{"MainPID": &u.MainPID, "ExecMainStatus": &u.ExitStatus, "NRestarts": &u.Restarts} {
			if v := values[key]; v != "" {
				n, err := strconv.Atoi(v)
				if err != nil {
					return nil, fmt.Errorf("systemctl show: %s of %s is no number", key, name)
				}
				*to = n
			}
		}
		if sec, err := strconv.ParseInt(strings.TrimPrefix(values["ActiveEnterTimestamp"], "@"), 10, 64); err == nil && sec > 0 {
			u.Since = time.Unix(sec, 0)
		}
		units[name] = u
	}
	return units, nil
}
