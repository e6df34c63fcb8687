// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// report starts a program that reports on itself, with these further descriptors.
func report(t *testing.T, c *Command, more ...*os.File) (self, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Path, c.Env = "/proc/self/exe", append(c.Env, partEnv+"=report")
	if n := c.Donate("report", w); n != firstDonated {
		t.Fatalf("the first donated descriptor is %d", n)
	}
	for i, f := range more {
		c.Donate("more "+strconv.Itoa(i), f)
	}
	p, err := c.Start()
	_ = w.Close()
	if err != nil {
		return self{}, err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	var s self
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatalf("it says %q and ended with %v: %v", text, p.State(), err)
	}
	if s.PID != p.PID() {
		t.Errorf("PID %d, but it is %d", p.PID(), s.PID)
	}
	return s, nil
}

// What the program has is what it was given, and no more.
func TestOnlyWhatIsGiven(t *testing.T) {
	t.Setenv("VMCRED_TEST_SECRET", "must not be inherited")
	loose, err := os.CreateTemp(t.TempDir(), "loose")
	if err != nil {
		t.Fatal(err)
	}
	defer loose.Close()
	// A descriptor that survives an execve, as one inherited from a careless parent.
	if _, err := unix.FcntlInt(loose.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	given, err := os.CreateTemp(t.TempDir(), "given")
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	signal.Ignore(syscall.SIGHUP) // as under nohup
	defer signal.Reset(syscall.SIGHUP)
	c := &Command{Args: []string{"one", "two, three"}, Env: []string{"A=b"}, Dir: "/usr"}
	s, err := report(t, c, given, given)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/proc/self/exe", "one", "two, three"}; !slices.Equal(s.Args, want) {
		t.Errorf("arguments %q, want %q", s.Args, want)
	}
	if want := []string{"A=b", partEnv + "=report"}; !slices.Equal(s.Env, want) {
		t.Errorf("environment %q, want %q", s.Env, want)
	}
	if s.Dir != "/usr" {
		t.Errorf("directory %s", s.Dir)
	}
	want := map[string]string{"0": "/dev/null", "1": "/dev/null", "2": "/dev/null", "3": s.Files["3"], "4": given.Name(), "5": given.Name()}
	if fmt.Sprint(s.Files) != fmt.Sprint(want) || !strings.HasPrefix(s.Files["3"], "pipe:") {
		t.Errorf("descriptors %v, want %v", s.Files, want)
	}
	if s.SID != s.PID {
		t.Errorf("session %d, want one of its own", s.SID)
	}
	if s.Core.Cur > 1 || s.Core.Max > 1 {
		t.Errorf("core limit %+v", s.Core)
	}
	if s.Status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs: %s", s.Status["NoNewPrivs"])
	}
	for _, set := range []string{"SigBlk", "SigIgn"} {
		if sig := s.Status[set]; strings.Trim(sig, "0") != "" {
			t.Errorf("%s: %s", set, sig)
		}
	}
}

func TestIdentity(t *testing.T) {
	needRoot(t)
	s, err := report(t, &Command{Identity: &Identity{UID: firstUID, GID: secondUID, Groups: []uint32{65533, 65530}}})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"Uid": strings.TrimSpace(strings.Repeat("65531 ", 4)), "Gid": strings.TrimSpace(strings.Repeat("65532 ", 4)), "Groups": "65530 65533",
		"CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapAmb": noCaps, "NoNewPrivs": "1",
	} {
		if s.Status[key] != want {
			t.Errorf("%s: %s, want %s", key, s.Status[key], want)
		}
	}
}

const noCaps = "0000000000000000"

// Many at once, from whatever threads: each has its own descriptors.
func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 40 {
		f, err := os.CreateTemp(t.TempDir(), fmt.Sprintf("of-%d-", i))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer f.Close()
			s, err := report(t, &Command{Args: []string{strconv.Itoa(i)}}, f)
			if err != nil {
				t.Error(err)
				return
			}
			if s.Files["4"] != f.Name() || len(s.Files) != 5 || s.Args[1] != strconv.Itoa(i) {
				t.Errorf("%d: arguments %q, descriptors %v", i, s.Args, s.Files)
			}
		})
	}
	wg.Wait()
}

// However the runner ends, the VMM ends with it.
func TestTheVMMDiesWithTheRunner(t *testing.T) {
	args := []string{}
	if os.Geteuid() == 0 {
		args = append(args, strconv.Itoa(firstUID))
	}
	c := startRunner(t, -1, args...)
	fd, err := unix.PidfdOpen(c.VMM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(c.Runner, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000)
	}
	if err != nil || n != 1 {
		t.Errorf("the VMM lives on without its runner (%d, %v)", n, err)
	}
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		script string
		code   int
		signal syscall.Signal
	}{{"exit 0", 0, 0}, {"exit 7", 7, 0}, {"kill -9 $$", -1, syscall.SIGKILL}} {
		p, err := (&Command{Path: "/bin/sh", Args: []string{"-c", c.script}}).Start()
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		ws, _ := p.State().Sys().(syscall.WaitStatus)
		if p.State().ExitCode() != c.code || ws.Signaled() != (c.signal != 0) {
			t.Errorf("%s: %v", c.script, p.State())
		}
		if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: a signal afterwards: %v", c.script, err)
		}
		if err := p.Kill(); err != nil {
			t.Errorf("%s: Kill afterwards: %v", c.script, err)
		}
	}
	p, err := (&Command{Path: "/bin/sleep", Args: []string{"3600"}}).Start()
	if err != nil {
		t.Fatal(err)
	}
	if p.State() != nil {
		t.Error("a running process has an end")
	}
	if err := errors.Join(p.Signal(syscall.SIGSTOP), p.Kill()); err != nil {
		t.Fatal(err)
	}
	if p.State() == nil {
		t.Error("Kill returned before the process was gone")
	}
}

// Every step that fails says in words which it was, and leaves no process.
func TestWhatCannotBeStarted(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name       string
		c          *Command
		want, hint string
	}{
		{"missing", &Command{Path: filepath.Join(dir, "missing")}, "missing: no such file or directory", ""},
		{"no right", &Command{Path: file("plain", "#!/bin/sh\n", 0o644)}, "permission denied", "must be able to execute it"},
		{"no program", &Command{Path: file("text", "hello\n", 0o755)}, "exec format error", "not a program for this machine"},
		{"no interpreter", &Command{Path: file("script", "#!/no/such/shell\n", 0o755)}, "its interpreter or loader is missing", ""},
		{"a directory", &Command{Path: dir}, "permission denied", "must be able to execute it"},
		{"no directory", &Command{Path: "/bin/true", Dir: filepath.Join(dir, "gone")}, "entering its directory", ""},
		{"a file as directory", &Command{Path: "/bin/true", Dir: "/bin/true"}, "entering its directory /bin/true: not a directory", ""},
		{"relative", &Command{Path: "true"}, "its path is not absolute", ""},
		{"NUL", &Command{Path: "/bin/true", Args: []string{"a\x00b"}}, "holds a NUL byte", ""},
		{"root", &Command{Path: "/bin/true", Identity: &Identity{GID: 1}}, "refusing to start it as root", ""},
		{"root's group", &Command{Path: "/bin/true", Identity: &Identity{UID: 1}}, "refusing to start it in root's group", ""},
		{"root's group among others", &Command{Path: "/bin/true", Identity: &Identity{UID: 1, GID: 1, Groups: []uint32{5, 0}}}, "refusing to start it in root's group", ""},
		{"no user", &Command{Path: "/bin/true", Identity: &Identity{UID: ^uint32(0), GID: 1}}, "means no user", ""},
		{"closed", &Command{Path: "/bin/true", donated: []donation{{"console", nil}}}, "descriptor 3 (console) is not open", ""},
		{"too long", &Command{Path: "/bin/true", Args: []string{strings.Repeat("x", 3<<20)}}, "argument list too long", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := c.c.Start()
			if err == nil {
				t.Fatalf("process %d runs", p.PID())
			}
			var se *StartError
			if !errors.As(err, &se) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "starting ") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if c.hint != "" && !strings.Contains(se.Hint(), c.hint) {
				t.Errorf("hint %q, want %q", se.Hint(), c.hint)
			}
		})
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

// An ordinary user may become nobody else.
func TestOnlyRootChangesTheUser(t *testing.T) {
	if os.Geteuid() == 0 {
		c := &cast{cmd: exec.Command("/proc/self/exe")}
		c.cmd.Env = []string{partEnv + "=runner " + strconv.Itoa(secondUID)}
		c.start(t, ordinary())
		if c.lines.Scan(); !strings.Contains(c.lines.Text(), "becoming uid 65532: operation not permitted") {
			t.Errorf("it says %s", c.lines.Text())
		}
		return
	}
	_, err := (&Command{Path: "/bin/true", Identity: &Identity{UID: secondUID, GID: secondUID}}).Start()
	var se *StartError
	if !errors.As(err, &se) || !strings.Contains(se.Hint(), "only root") {
		t.Errorf("got %v", err)
	}
}

func TestLookup(t *testing.T) {
	id, err := Lookup("daemon")
	if err != nil || id.UID == 0 || id.GID == 0 || id.User != "daemon" {
		t.Errorf("daemon: %+v, %v", id, err)
	}
	_, err = Lookup("vmcred-no-such-user")
	var unknown *UnknownUserError
	if !errors.As(err, &unknown) || !strings.Contains(unknown.Hint(), "useradd --system") {
		t.Errorf("got %v", err)
	}
}

func TestRulesets(t *testing.T) {
	for abi, scoped := range map[int]bool{1: false, 5: false, 6: true, 7: true, 99: true} {
		attr, size, words := rulesetFor(abi)
		if (attr.Scoped != 0) != scoped || (attr.Handled_access_fs == 0) != scoped || (size == 8) == scoped {
			t.Errorf("ABI %d: %+v, %d bytes, %s", abi, attr, size, words)
		}
	}
	if !strings.Contains(landlockMissing(unix.EOPNOTSUPP), "disabled") || landlockMissing(unix.ENOSYS) == landlockMissing(unix.EINVAL) {
		t.Error("the reasons are mixed up")
	}
}
