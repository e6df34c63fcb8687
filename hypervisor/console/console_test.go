// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// TestFileOfOthers: what a guest says goes into no file that someone else put
// there, to read along or to have another file of ours written to.
func TestFileOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it makes files of several users: needs root")
	}
	const own, other = 64321, 64322
	id := &launch.Identity{UID: own, GID: own}
	for name, c := range map[string]struct {
		uid  int
		link bool
		want string // of the refusal; empty: it is taken
	}{
		"root's":               {uid: 0},
		"the VM's own user's":  {uid: own},
		"someone else's":       {uid: other, want: "belongs to user 64322"},
		"another file's name":  {uid: 0, link: true, want: "several names"},
		"of the VM's own user": {uid: own, link: true, want: "several names"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "console")
			write(t, path, "")
			if err := os.Chown(path, c.uid, c.uid); err != nil {
				t.Fatal(err)
			}
			if c.link {
				if err := os.Link(path, filepath.Join(dir, "second")); err != nil {
					t.Fatal(err)
				}
			}
			to := vm.Console{Mode: vm.ConsoleFile, Path: path}
			byFile, err := Open(to, dir, id, nil)
			byPipe, perr := OpenPipe(to, id, nil)
			for _, con := range []*Console{byFile, byPipe} {
				if con != nil {
					con.Finish(time.Minute)
				}
			}
			if c.want == "" {
				if err != nil || perr != nil {
					t.Errorf("refused: %v, %v", err, perr)
				}
				return
			}
			for _, err := range []error{err, perr} {
				if err == nil || !strings.Contains(err.Error(), c.want) || hintOf(err) == "" {
					t.Errorf("%v (hint %q), want %q", err, hintOf(err), c.want)
				}
			}
		})
	}
}

// vmm is a child that opens its console again by its number, as a VMM of that
// user does, and writes the text to it.
func vmm(t *testing.T, con *Console, id *launch.Identity, text string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `printf %s "$1" >/proc/self/fd/3`, "sh", text)
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{con.Child()}
	if id != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id.UID, Gid: id.GID}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	con.Started()
	if con.Child() != nil {
		t.Error("the VMM's end is still open here")
	}
	con.Finish(time.Minute)
}

// otherUser is one that only root can become.
func otherUser() *launch.Identity {
	if os.Geteuid() != 0 {
		return nil
	}
	return &launch.Identity{UID: 64321, GID: 64321}
}

func TestPipe(t *testing.T) {
	id := otherUser()
	if id == nil {
		t.Log("SKIPPED: another user's pipe needs root")
	}
	var got buffer
	con, err := OpenPipe(vm.Console{Mode: vm.ConsoleStdout}, id, &got)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(con.Child().Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the VMM's end: flags %#x, %v", flags, err)
	}
	vmm(t, con, id, "Linux version")
	if got.String() != "Linux version" {
		t.Errorf("%q", got.String())
	}
}

// TestPipeToFile: the file is this process's, not the VMM's, and is appended to.
func TestPipeToFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	id := otherUser()
	for _, text := range []string{"one,", "two"} {
		var got buffer
		con, err := OpenPipe(vm.Console{Mode: vm.ConsoleFile, Path: path}, id, &got)
		if err != nil {
			t.Fatal(err)
		}
		vmm(t, con, id, text)
		if err := con.log.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the file was left open: %v", err)
		}
		if got.String() != "" {
			t.Errorf("also to the writer: %q", got.String())
		}
	}
	if b, err := os.ReadFile(path); string(b) != "one,two" {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPipe(vm.Console{Mode: vm.ConsoleFile, Path: path + ".link"}, nil, nil); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link at the end: %v", err)
	}
}

func TestPipeModes(t *testing.T) {
	for _, mode := range []vm.ConsoleMode{vm.ConsoleOff, vm.ConsoleSocket} {
		con, err := OpenPipe(vm.Console{Mode: mode}, nil, nil)
		if err != nil || con.Child() != nil {
			t.Errorf("%s: %+v, %v", mode, con, err)
		}
		con.Started()
		con.Finish(time.Minute)
	}
}

// TestPipeHeld: a process that the VMM left behind does not hold up the end.
func TestPipeHeld(t *testing.T) {
	con, err := OpenPipe(vm.Console{Mode: vm.ConsoleStdout}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	held, err := unix.Dup(int(con.Child().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	con.Started()
	ended := make(chan struct{})
	go func() {
		con.Finish(time.Millisecond)
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the end waits for whoever holds the pipe")
	}
	_ = unix.Close(held)
	<-ended
}

// TestAppender: a disk that was full for a while costs what it did not take.
func TestAppender(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	a := &appender{}
	open := func(path string) {
		t.Helper()
		var err error
		if a.f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.f.Close() })
	}
	put := func(text string) {
		t.Helper()
		if n, err := a.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	open(path)
	put("before")
	open("/dev/full")
	put("abc")
	put("de")
	open(path)
	put("after")
	put(".")
	want := fmt.Sprintf("before\r\n[5 bytes of console output lost: %v]\r\nafter.", unix.ENOSPC)
	if b, err := os.ReadFile(path); string(b) != want {
		t.Errorf("%q, want %q, %v", b, want, err)
	}
}

// arrivals hands on each write.
type arrivals chan []byte

func (a arrivals) Write(b []byte) (int, error) {
	a <- bytes.Clone(b)
	return len(b), nil
}

// However slowly a pipe is read, all of it is there at the end, and the end does not
// wait for the pace.
func TestPipeIsReadToItsEnd(t *testing.T) {
	got := make(arrivals, 10)
	con, err := OpenPipe(vm.Console{Mode: vm.ConsoleStdout}, nil, got)
	if err != nil {
		t.Fatal(err)
	}
	con.pace = rate.NewLimiter(rate.Every(time.Hour), 1)
	w, err := unix.Dup(int(con.Child().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	vmm := os.NewFile(uintptr(w), "vmm")
	con.Started()
	write := func(text string) {
		if _, err := vmm.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	// The first is for nothing, and after the second the reader waits for an hour.
	for _, text := range []string{"a", "b"} {
		write(text)
		if b := <-got; string(b) != text {
			t.Errorf("%q, want %q", b, text)
		}
	}
	write("the rest")
	_ = vmm.Close()
	con.Finish(time.Minute)
	if b := <-got; string(b) != "the rest" {
		t.Errorf("%q at the end", b)
	}
}
