// SPDX-License-Identifier: Apache-2.0

package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func read1(t *testing.T, root string) *Found {
	t.Helper()
	f, err := Read(root, "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// sample is a record of this process; what Write fills in is left out.
func sample() Record {
	return Record{
		VM: "a", File: "/a.yaml", VMM: Self(), Hypervisor: "qemu", HVVersion: "7.2", Accel: "tcg",
		Started: time.Unix(1e9, 0).UTC(), Ready: &Ready{At: time.Unix(1e9+1, 0).UTC(), By: "boot"},
		Delivered: []Delivered{{Host: "host-a", Guest: "HOST_A", Bytes: 8, Channel: "smbios", Proven: Unknown}},
	}
}

func TestRecordIsReadBackAndGoes(t *testing.T) {
	root := t.TempDir()
	c := acquire(t, root, "a")
	if _, err := Read(root, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it is written: %v", err)
	}
	for range 2 { // the second replaces the first
		if err := c.Write(sample()); err != nil {
			t.Fatal(err)
		}
	}
	f := read1(t, root)
	if f.Dead != "" || f.Handle() == nil || f.Handle().Ended() || f.Runner != Self() || f.Delivered[0].Guest != "HOST_A" || f.Ready.By != "boot" {
		t.Errorf("read back: %+v", f)
	}
	info, err := os.Stat(filepath.Join(c.Dir(), recordName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v", info, err)
	}
	entries, _ := os.ReadDir(c.Dir())
	if len(entries) != 2 {
		t.Errorf("beside the lock and the record there is something: %v", entries)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(root, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
	if names, err := Names(filepath.Join(root, "none")); err != nil || names != nil {
		t.Errorf("%v %v", names, err)
	}
}

// A record is of a VM that runs only if all of it still is so.
func TestDeadRecords(t *testing.T) {
	for what, change := range map[string]func(*Record){
		"has ended":           func(r *Record) { r.Runner = gone(t) },
		"process 1, has":      func(r *Record) { r.Runner = Process{PID: 1, Start: 1 << 60} }, // the number is another's now
		"was started anew":    func(r *Record) { r.BootID = "another" },
		"nobody holds its lo": func(r *Record) { r.Runner = Describe(1) }, // it lives, and is not who holds the lock
	} {
		root := t.TempDir()
		c := acquire(t, root, "a")
		if err := c.Write(sample()); err != nil {
			t.Fatal(err)
		}
		f := read1(t, root)
		change(&f.Record)
		rewrite(t, c, f.Record)
		if f = read1(t, root); !strings.Contains(f.Dead, what) || f.Handle() != nil {
			t.Errorf("%s: %q", what, f.Dead)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// gone is a process that has ended.
func gone(t *testing.T) Process {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return Process{PID: cmd.Process.Pid, Start: 1}
}

// rewrite writes what another process would have.
func rewrite(t *testing.T, c *Claim, r Record) {
	t.Helper()
	b := fmt.Sprintf(`{"version":1,"boot_id":%q,"runner":{"pid":%d,"start":%d}}`, r.BootID, r.Runner.PID, r.Runner.Start)
	if err := os.WriteFile(filepath.Join(c.Dir(), recordName), []byte(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A lock that nobody holds: the runner was killed and its number is ours by chance.
func TestRecordWithoutALockIsDead(t *testing.T) {
	root := t.TempDir()
	c := acquire(t, root, "a")
	if err := c.Write(sample()); err != nil {
		t.Fatal(err)
	}
	if pid, held, err := Held(root, "a"); err != nil || !held || pid != os.Getpid() {
		t.Errorf("held: %d %v %v", pid, held, err)
	}
	if err := errors.Join(c.lock.Close(), c.gate.f.Close()); err != nil {
		t.Fatal(err)
	}
	if f := read1(t, root); f.Dead != "nobody holds its lock" {
		t.Errorf("%q", f.Dead)
	}
	if _, held, err := Held(root, "a"); err != nil || held {
		t.Errorf("held: %v %v", held, err)
	}
	c = acquire(t, root, "a") // the next start clears it
	if _, err := Read(root, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	_ = c.Close()
}

// Whoever looks whether the lock is held does not keep a start away.
func TestLookingKeepsNoStartAway(t *testing.T) {
	root := t.TempDir()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_, _, _ = Held(root, "a")
			}
		}
	}()
	for range 60 {
		c, err := Acquire(root, "a")
		if err != nil {
			t.Error(err)
			break
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}

// What somebody else could have written is not believed.
func TestRecordsOfOthersAreNotBelieved(t *testing.T) {
	for what, spoil := range map[string]func(dir, file string) error{
		"the directory can be written": func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"the file can be written":      func(_, file string) error { return os.Chmod(file, 0o622) },
		"a second name":                func(_, file string) error { return os.Link(file, file+"2") },
		"another's directory":          func(dir, _ string) error { return os.Chown(dir, 65527, -1) },
		"another's file":               func(_, file string) error { return os.Chown(file, 65527, -1) },
		"a link": func(_, file string) error {
			return errors.Join(os.Rename(file, file+"2"), os.Symlink(file+"2", file))
		},
		"a pipe": func(_, file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
	} {
		if strings.HasPrefix(what, "another's") && os.Geteuid() != 0 {
			t.Logf("SKIPPED: %s: needs root", what)
			continue
		}
		root := t.TempDir()
		c := acquire(t, root, "a")
		if err := c.Write(sample()); err != nil {
			t.Fatal(err)
		}
		if err := spoil(c.Dir(), filepath.Join(c.Dir(), recordName)); err != nil {
			t.Fatal(err)
		}
		f, err := Read(root, "a")
		var untrusted *UntrustedError
		if what == "a link" {
			if !errors.Is(err, unix.ELOOP) {
				t.Errorf("%s: %v %v", what, f, err)
			}
		} else if !errors.As(err, &untrusted) {
			t.Errorf("%s: %v %v", what, f, err)
		}
		_ = c.Close()
	}
}

func TestHandle(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := Describe(cmd.Process.Pid).open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.Canceled) || h.Ended() {
		t.Errorf("it runs: %v", err)
	}
	waited := make(chan error)
	go func() { waited <- h.Wait(t.Context()) }() // also after a wait that was given up
	if err := h.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil || !h.Ended() {
		t.Errorf("its end: %v", err)
	}
	_ = cmd.Wait()
	if err := h.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal after the end: %v", err)
	}
}

// A command's name may look like the fields after it.
func TestStartTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		comm := rapid.StringMatching(`[ ()a-z0-9\n]{0,15}`).Draw(t, "comm")
		start := rapid.Uint64().Draw(t, "start")
		got, err := parseStart(fmt.Appendf(nil, "1 (%s) S%s %d 0 0\n", comm, strings.Repeat(" 1", startField-1), start))
		if err != nil || got != start {
			t.Errorf("%d %v, want %d", got, err, start)
		}
	})
	for _, bad := range []string{"", "1", "1 (a) S", "1 (a"} {
		if _, err := parseStart([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"runner":{"pid":1},"credentials":[{}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord("x", data)
		if err == nil && (r.Version != RecordVersion || r.Runner.PID <= 0) {
			t.Errorf("%q gives %+v", data, r)
		}
	})
}
