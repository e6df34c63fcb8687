// SPDX-License-Identifier: Apache-2.0

package cli_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/testtty"
)

// patience ends a script that would hang. No outcome depends on it.
const patience = 2 * time.Minute

// proc is a program that runs while its script goes on.
type proc struct {
	cmd      *exec.Cmd
	out, err *recorder
	done     chan struct{} // closed when it has ended; end is set before
	end      error
}

// recorder keeps what a program writes and lets a script wait for a part of it.
type recorder struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // closed and replaced at each write
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{})} }

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
	return r.text.Write(b)
}

func (r *recorder) now() (string, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String(), r.changed
}

// start NAME COMMAND… starts a command. Its output is in NAME.out and NAME.err
// once it has ended.
func start(ts *testscript.TestScript, args []string) {
	p := &proc{out: newRecorder(), err: newRecorder(), done: make(chan struct{})}
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	p.cmd = exec.Command(path, args[2:]...)
	p.cmd.Dir, p.cmd.Env = ts.MkAbs("."), environ(ts)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	ts.Check(p.cmd.Start())
	go func() {
		p.end = p.cmd.Wait()
		close(p.done)
	}()
	ts.Value("procs").(map[string]*proc)[args[0]] = p
	ts.Defer(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
}

// environ is the script's environment, as far as the program looks at it.
func environ(ts *testscript.TestScript) []string {
	var out []string
	for _, k := range []string{
		"PATH", "HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY",
		"NO_COLOR", "TERM", "GOCOVERDIR", "INVOCATION_ID", "SYSTEMD_EXEC_PID",
	} {
		if v := ts.Getenv(k); v != "" {
			out = append(out, k+"="+v)
		}
	}
	return out
}

func find(ts *testscript.TestScript, name string) *proc {
	p, ok := ts.Value("procs").(map[string]*proc)[name]
	if !ok {
		ts.Fatalf("nothing was started as %s", name)
	}
	return p
}

// await NAME out|err PATTERN waits until the program has written that.
func await(ts *testscript.TestScript, args []string) {
	p := find(ts, args[0])
	from := map[string]*recorder{"out": p.out, "err": p.err}[args[1]]
	pattern, err := regexp.Compile("(?m)" + args[2])
	ts.Check(err)
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for ended := false; ; {
		text, changed := from.now()
		if pattern.MatchString(text) {
			return
		}
		if ended {
			p.fatal(ts, fmt.Sprintf("%s has ended, and never wrote %q", args[0], args[2]))
		}
		select {
		case <-changed:
		case <-p.done:
			ended = true // what it wrote last is there now
		case <-timeout.C:
			p.fatal(ts, fmt.Sprintf("%s does not write %q", args[0], args[2]))
		}
	}
}

func (p *proc) fatal(ts *testscript.TestScript, why string) {
	out, _ := p.out.now()
	log, _ := p.err.now()
	ts.Fatalf("%s\n[stdout]\n%s\n[stderr]\n%s", why, out, log)
}

// signal NAME SIGNAL… sends signals, without a pause between them.
func signal(ts *testscript.TestScript, args []string) {
	for _, s := range args[1:] {
		ts.Check(find(ts, args[0]).cmd.Process.Signal(unix.SignalNum("SIG" + s)))
	}
}

// press NAME SIGNAL sends a signal again and again, as an impatient person
// does, until the program ends.
func press(ts *testscript.TestScript, args []string) {
	p := find(ts, args[0])
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		if err := p.cmd.Process.Signal(unix.SignalNum("SIG" + args[1])); err != nil && !errors.Is(err, os.ErrProcessDone) {
			ts.Fatalf("%v", err)
		}
		select {
		case <-p.done:
			return
		case <-again.C:
		case <-timeout.C:
			p.fatal(ts, args[0]+" does not end")
		}
	}
}

var runsAs = regexp.MustCompile(`runs as process (\d+)`)

// killvmm NAME kills the hypervisor that the program said it started.
func killVMM(ts *testscript.TestScript, args []string) {
	log, _ := find(ts, args[0]).err.now()
	m := runsAs.FindStringSubmatch(log)
	if m == nil {
		ts.Fatalf("no hypervisor runs: %s", log)
	}
	var pid int
	_, err := fmt.Sscan(m[1], &pid)
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

// finish NAME CODE waits for the program's end.
func finish(ts *testscript.TestScript, args []string) {
	p := find(ts, args[0])
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.done:
	case <-timeout.C:
		p.fatal(ts, args[0]+" does not end")
	}
	out, _ := p.out.now()
	log, _ := p.err.now()
	write(ts, args[0]+".out", []byte(out))
	write(ts, args[0]+".err", []byte(log))
	if got := status(p.end); got != args[1] {
		p.fatal(ts, fmt.Sprintf("%s: exit status %s, want %s", args[0], got, args[1]))
	}
}

// on-tty FILE COMMAND… runs a command with a terminal as its standard output
// and standard error, and keeps what the terminal shows.
func onTTY(ts *testscript.TestScript, args []string) {
	ours, tty, err := testtty.Open()
	ts.Check(err)
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), environ(ts), tty, tty
	err = cmd.Start()
	_ = tty.Close()
	ts.Check(err)
	shown, _ := io.ReadAll(ours) // EIO when nobody holds the other end
	_ = ours.Close()
	_ = cmd.Wait()
	write(ts, args[0], shown)
}
