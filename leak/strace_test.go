// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// trace runs a shell script under strace with a value in the file $SECRET,
// which the script reads, and a directory as its own.
func trace(t *testing.T, s *Search, v, script string) Traced {
	t.Helper()
	dir := t.TempDir()
	if err := file("secret", v)(dir); err != nil {
		t.Fatal(err)
	}
	return run(t, s, Trace{Argv: []string{"bash", "-c", script}, Dir: dir, Env: []string{"PATH=" + os.Getenv("PATH"), "SECRET=" + dir + "/secret"}})
}

func run(t *testing.T, s *Search, tr Trace) Traced {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("SKIPPED: needs the package strace")
	}
	var out bytes.Buffer
	tr.Stderr, tr.Stdout = &out, &out
	got, err := s.Strace(context.Background(), tr)
	if err != nil || got.ExitCode != 0 {
		t.Fatalf("%+v, %v: %s", got, err, out.String())
	}
	if got.Unknown != 0 || got.Lines == 0 {
		t.Errorf("%+v", got)
	}
	return got
}

func TestStrace(t *testing.T) {
	for name, c := range map[string]struct {
		script, form string
		kind         Kind
		target       Target
		check        func(Place) bool
	}{
		"a file that lives a moment": {
			`read -r v <secret; echo "$v" >short; rm short`, "plain", Write, ToFile,
			func(p Place) bool { return strings.HasSuffix(p.Path, "/short") && p.Syscall == "write" },
		},
		"base64 into a pipe": {`read -r v <secret; echo -n "x$v" | base64 -w0 | cat >/dev/null`, "base64, 1 byte in", Write, ToPipe, nil},
		"an argument": {
			`read -r v <secret; /bin/true a "$v"`, "plain", ExecArgv, "",
			func(p Place) bool { return p.Detail == "argument 2" && strings.HasSuffix(p.Exe, "/bash") },
		},
		"a variable": {
			`read -r v <secret; TOKEN=$v /bin/true; `, "plain", ExecEnviron, "",
			func(p Place) bool { return p.Detail == "variable TOKEN" },
		},
		"an argument of what is not there":  {`read -r v <secret; command /nowhere/x "$v"; true`, "plain", ExecArgv, "", nil},
		"a terminal or other device":        {`read -r v <secret; echo "$v" >/dev/null`, "plain", Write, ToDevice, nil},
		"a file's name":                     {`read -r v <secret; : >"x${v//\//_}"`, "plain", Name, "", nil},
		"in pieces":                         {`read -r v <secret; { printf %s "${v:0:3}"; printf %s "${v:3:20}"; printf %s "${v:23}"; } >x`, "plain", Write, ToFile, nil},
		"by a child of a child":             {`read -r v <secret; (bash -c "(sleep 0; read -r w <secret; echo \$w >x) & wait") & wait`, "plain", Write, ToFile, nil},
		"to the standard output":            {`cat secret`, "plain", Write, ToPipe, nil},
		"a name with quotes and arrows":     {`read -r v <secret; echo "$v" >'a ->"<b> (deleted), \x41'`, "plain", Write, ToFile, func(p Place) bool { return strings.HasSuffix(p.Path, `a ->"<b> (deleted), \x41`) }},
		"longer than a line buffer of ours": {`read -r v <secret; { head -c 3000000 /dev/zero; echo "$v"; } | dd bs=4M iflag=fullblock of=x 2>/dev/null`, "plain", Write, ToFile, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := token()
			if name == "a file's name" {
				v = strings.NewReplacer("/", "_", "+", "_").Replace(v)
			}
			s := search(t, v)
			trace(t, s, v+"\n", c.script)
			want(t, s, v, c.kind, c.form)
			for _, f := range s.Report().Findings {
				if f.Form == c.form && f.Place.Kind == c.kind && f.Place.Target == c.target && f.Place.PID != 0 && (c.check == nil || c.check(f.Place)) {
					return
				}
			}
			t.Errorf("not where it was put:\n%s", reportText(t, s.Report()))
		})
	}
}

func TestStraceOfSomethingClean(t *testing.T) {
	v := token()
	s := search(t, v)
	tr := trace(t, s, v+"\n", `read -r v <secret; [ ${#v} = 44 ] && ls -la >x; exec 3<secret; (sleep 0.01) & kill -CONT $!; wait`)
	none(t, s)
	if r := s.Report(); r.Searched.Execs < 2 || r.Searched.Writes < 1 || r.Searched.Paths < 1 || tr.Bytes == 0 {
		t.Errorf("%+v, %+v", r.Searched, tr)
	}
}

// The bash way is the control of every leak test: sampling and strace both find it.
func TestTheBashWayIsFound(t *testing.T) {
	creds := t.TempDir()
	v := token()
	if err := errors.Join(file("host-api-key", v+"\n")(creds), file("host-db-password", token())(creds)); err != nil {
		t.Fatal(err)
	}
	env := []string{"CREDENTIALS_DIRECTORY=" + creds, "VMM=./testdata/vmm.sh", "PATH=" + os.Getenv("PATH")}
	t.Run("sampling", func(t *testing.T) {
		child(t, env, "testdata/bash-way.sh")
		s := search(t, v)
		if err := s.Processes(context.Background()); err != nil {
			t.Fatal(err)
		}
		if f := want(t, s, v, Argv, "plain"); !strings.HasPrefix(f.Place.Detail, "argument ") {
			t.Errorf("%+v", f)
		}
		if f := want(t, s, v, Environ, "plain"); f.Place.Detail != "variable MICROVM_PLATFORM_OPS" {
			t.Errorf("%+v", f)
		}
	})
	t.Run("strace", func(t *testing.T) {
		s := search(t, v, Under("credentials directory", creds))
		run(t, s, Trace{Argv: []string{"testdata/bash-way.sh"}, Env: env})
		want(t, s, v, ExecArgv, "plain")
		if f := want(t, s, v, ExecEnviron, "plain"); f.Place.Detail != "variable MICROVM_PLATFORM_OPS" {
			t.Errorf("%+v", f)
		}
		want(t, s, v, Write, "plain") // its pipes
	})
}

// A file that came and went is what sampling cannot find.
func TestSamplingMissesWhatIsGone(t *testing.T) {
	v, dir := token(), t.TempDir()
	if err := errors.Join(file("short", v)(dir), os.Remove(filepath.Join(dir, "short"))); err != nil {
		t.Fatal(err)
	}
	s := search(t, v)
	if err := s.Files(context.Background(), Files{Roots: []string{dir}}); err != nil {
		t.Fatal(err)
	}
	none(t, s)
}

// What a process writes straight from memfd_secret pages is invisible to
// strace, which must not pass for clean.
func TestBytesThatStraceCannotReadAreFound(t *testing.T) {
	if kind := arenaKind(t); kind != "memfd_secret" {
		t.Skipf("SKIPPED: needs memfd_secret(2), secrets are in %s here", kind)
	}
	v, dir := token(), t.TempDir()
	for how, want := range map[string]int{"write-file": 1, "write-memfd": 0} {
		t.Run(how, func(t *testing.T) {
			s := search(t, v, Memfds("the payload", "vmcred-"))
			tr := Trace{Argv: []string{"/proc/self/exe"}, Dir: dir, Env: []string{"LEAK_TEST_KEEP=" + how}, Stdin: strings.NewReader(v)}
			tr.Argv[0], _ = os.Executable()
			run(t, s, tr)
			r := s.Report()
			if r.Places != want || len(r.Findings)+len(r.Meant) != 1 {
				t.Fatalf("%s", reportText(t, r))
			}
			if f := append(r.Findings, r.Meant...)[0]; f.Needle != Unreadable || f.Place.Path == "" {
				t.Errorf("%+v", f)
			}
		})
	}
}

// The kernel keeps 15 bytes of a thread's name, and strace shows no more: that much
// of a value is found, and nothing else is missing.
func TestStraceFindsAThreadsName(t *testing.T) {
	for _, clean := range []bool{false, true} {
		v := token()
		s := search(t, v)
		if clean {
			v = token()
		}
		tr := Trace{Dir: t.TempDir(), Env: []string{"LEAK_TEST_KEEP=thread name"}, Stdin: strings.NewReader(v)}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		tr.Argv = []string{self}
		run(t, s, tr)
		if clean {
			none(t, s)
		} else if f := want(t, s, v, Name, "plain"); f.Place.Syscall != "prctl" {
			t.Errorf("%+v", f)
		}
		for _, k := range s.Report().NotSearched {
			if k.Example == "prctl" {
				t.Errorf("not searched: %+v", k)
			}
		}
	}
}

func TestStraceSaysWhatItCannotSee(t *testing.T) {
	v := token()
	s := search(t, v)
	trace(t, s, v+"\n", `command -v python3 >x && cp --reflink=never secret copy && dd if=secret of=y status=none`)
	for _, k := range s.Report().NotSearched {
		if k.Why == "no argument shows the bytes" && k.Example != "" {
			return
		}
	}
	if r := s.Report(); r.Places == 0 {
		t.Errorf("cp neither wrote what we saw nor what we said we did not see:\n%s", reportText(t, r))
	}
}

func TestStraceErrors(t *testing.T) {
	s := search(t, token())
	var missing *NoStraceError
	if _, err := s.Strace(context.Background(), Trace{Argv: []string{"/nowhere/at-all"}}); !errors.As(err, &missing) || missing.Hint() == "" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.Strace(ctx, Trace{Argv: []string{"sh", "-c", "sleep 1000 & wait"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if time.Since(begin) > time.Minute {
		t.Error("the command was not ended")
	}
	got, err := s.Strace(context.Background(), Trace{Argv: []string{"sh", "-c", "exit 7"}})
	if err != nil || got.ExitCode != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	t.Setenv("PATH", "/nowhere")
	if _, err := s.Strace(context.Background(), Trace{Argv: []string{"sh"}}); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
}
