// SPDX-License-Identifier: Apache-2.0

package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// name is what the programs of these tests are called.
const name = "vmm-x"

// vmm is a program of that name, at that path or on PATH.
func vmm(path, cache string) *Program {
	return &Program{Name: name, Path: path, Title: "VMM X", Install: "apt install vmm-x", CacheDir: cache}
}

// valid takes what says says.
func valid(line []byte) error {
	if !strings.HasPrefix(string(line), "VMM X version ") {
		return fmt.Errorf("its version reads %q", line)
	}
	return nil
}

// ask finds the program and asks it.
func ask(ctx context.Context, p *Program) (path, line string, err error) {
	if path, err = p.Find(); err != nil {
		return "", "", err
	}
	line, err = p.VersionLine(ctx, path, valid)
	return path, line, err
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// script is an executable that counts how often it was started.
func script(t *testing.T, body string) (path string, starts func() int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-program-") // t.TempDir is closed to the user who is asked as
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	path, log := filepath.Join(dir, name), filepath.Join(dir, "log")
	write(t, log, nil, 0o666)
	write(t, path, []byte("#!/bin/sh\necho x >>"+log+"\n"+body+"\n"), 0o755)
	return path, func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "x")
	}
}

const says = "echo 'VMM X version %s'"

func TestRemembers(t *testing.T) {
	path, starts := script(t, fmt.Sprintf(says, "8.2.1"))
	cache := t.TempDir()
	probe := func(want string, total int) {
		t.Helper()
		at, line, err := ask(t.Context(), vmm(path, cache))
		if err != nil || at != path || line != "VMM X version "+want {
			t.Fatalf("%s: %q, %v", at, line, err)
		}
		if n := starts(); n != total {
			t.Fatalf("started %d times, want %d", n, total)
		}
	}
	probe("8.2.1", 1)
	probe("8.2.1", 1)
	fact := filepath.Join(cache, name+".json")
	if st, err := os.Stat(fact); err != nil || st.Mode() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}

	// Another file at that path.
	write(t, path+".new", []byte("#!/bin/sh\necho x >>"+filepath.Dir(path)+"/log\n"+fmt.Sprintf(says, "9.0")), 0o755)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	probe("9.0", 2)
	probe("9.0", 2)

	// What is not ours to believe is asked anew, and replaced.
	good, err := os.ReadFile(fact)
	if err != nil {
		t.Fatal(err)
	}
	total := 2
	for what, spoil := range map[string]func() error{
		"garbage": func() error { return os.WriteFile(fact, []byte("{"), 0o600) },
		"another boot": func() error {
			return os.WriteFile(fact, []byte(strings.Replace(string(good), `"boot":"`, `"boot":"0`, 1)), 0o600)
		},
		"writable by all": func() error { return os.Chmod(fact, 0o666) },
		"a link":          func() error { return errors.Join(os.Rename(fact, fact+".x"), os.Symlink(fact+".x", fact)) },
		"too long":        func() error { return os.WriteFile(fact, append(good, make([]byte, factMax)...), 0o600) },
		"somebody else's": func() error { return os.Chown(fact, 65531, 65531) },
		"an absurd answer": func() error {
			return os.WriteFile(fact, []byte(strings.Replace(string(good), "version", "vision", 2)), 0o600)
		},
	} {
		if what == "somebody else's" && os.Geteuid() != 0 {
			t.Log("SKIPPED: somebody else's file needs root")
			continue
		}
		if err := spoil(); err != nil {
			t.Fatal(what, err)
		}
		t.Log(what)
		total++
		probe("9.0", total)
		probe("9.0", total)
	}
}

func TestRefuses(t *testing.T) {
	for what, tc := range map[string]struct{ body, want, hint string }{
		"another program": {"echo bash 5.2", `does not look like VMM X: its version reads "bash 5.2"`, ""},
		"no answer":       {"exit 0", `""`, ""},
		"fails":           {"echo libfoo.so: not found >&2; exit 127", "--version failed: exit status 127: libfoo.so: not found", "by hand"},
		"escape":          {`printf '\033[31m' >&2; exit 1`, "?[31m", ""},
	} {
		t.Run(what, func(t *testing.T) {
			path, starts := script(t, tc.body)
			p := vmm(path, t.TempDir())
			for range 2 {
				_, _, err := ask(t.Context(), p)
				if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(hintOf(err), tc.hint) {
					t.Errorf("%v (hint %q), want %q (%q)", err, hintOf(err), tc.want, tc.hint)
				}
			}
			if n := starts(); n != 2 {
				t.Errorf("asked %d times: a refusal is not remembered", n)
			}
		})
	}
}

func TestFinds(t *testing.T) {
	path, _ := script(t, fmt.Sprintf(says, "7.2.0"))
	t.Chdir(filepath.Dir(path))
	t.Setenv("PATH", filepath.Dir(path))
	if at, _, err := ask(t.Context(), vmm("", "")); err != nil || at != path {
		t.Errorf("found %s, %v", at, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, _, err := ask(t.Context(), vmm("", "")); hintOf(err) != "apt install vmm-x" || !strings.Contains(err.Error(), name) {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	if names, _ := filepath.Glob("*.json"); names != nil {
		t.Errorf("remembered in the working directory: %v", names)
	}
	// Made with our mode, it would keep every unit's user out.
	t.Setenv("PATH", filepath.Dir(path))
	if _, _, err := ask(t.Context(), vmm("", "missing")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("missing"); err == nil {
		t.Error("a missing directory was made")
	}
	t.Setenv("PATH", ".")
	if _, _, err := ask(t.Context(), vmm("", "")); err == nil || !strings.Contains(err.Error(), "working directory") {
		t.Errorf("got %v", err)
	}
	if _, _, err := ask(t.Context(), vmm("/nonexistent/vmm", "")); err == nil || !strings.Contains(err.Error(), "/nonexistent/vmm") {
		t.Errorf("got %v", err)
	}
}

// TestIsNotRoot: not even for its version.
func TestIsNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root could run it as root")
	}
	path, _ := script(t, `[ "$(id -u) $(id -g) $(id -G)" = "65534 65534 65534" ] || exit 1`+"\n"+fmt.Sprintf(says, "7.2.0"))
	if _, _, err := ask(t.Context(), vmm(path, "")); err != nil {
		t.Error(err)
	}
	path, _ = script(t, fmt.Sprintf(says, "7.2.0"))
	if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(t.Context(), vmm(path, "")); err == nil || !strings.Contains(hintOf(err), "every user must be able") {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
}

// TestOfOthers: one that someone else could have written is not even
// asked for its version, which root would run it for.
func TestOfOthers(t *testing.T) {
	others := map[string]func(path string) error{
		"writable by all":        func(path string) error { return os.Chmod(path, 0o777) },
		"in a directory of many": func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
	}
	if os.Geteuid() == 0 {
		others["someone else's"] = func(path string) error { return os.Chown(path, 65534, 65534) }
	}
	for what, change := range others {
		t.Run(what, func(t *testing.T) {
			path, starts := script(t, fmt.Sprintf(says, "7.2.0"))
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", filepath.Dir(path))
			if _, _, err := ask(t.Context(), vmm("", "")); err == nil || hintOf(err) == "" {
				t.Errorf("%v (hint %q)", err, hintOf(err))
			}
			if n := starts(); n > 0 {
				t.Errorf("it was started %d times", n)
			}
		})
	}
}

func TestIsPatient(t *testing.T) {
	path, _ := script(t, "exec sleep 3600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := ask(ctx, vmm(path, "")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
