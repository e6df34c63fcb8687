// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// begin starts a VM and ends it with the test, whatever happens.
func begin(t *testing.T, d *Driver, l hypervisor.Launch) hypervisor.Machine {
	t.Helper()
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatalf("%v (hint %q)", err, hintOf(err))
	}
	t.Cleanup(func() {
		_ = m.Kill()
		end(t, m)
	})
	return m
}

// TestOddNames: paths that QEMU's own syntax or a terminal would trip over.
func TestOddNames(t *testing.T) {
	d, info, sp := installed(t)
	kernel, err := os.ReadFile(sp.Boot.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a b", "a,b,,c", "é=ü", "\"q\"\\'", "x\ny", "\xff\xfe", "-kernel", "on,id=x", "json:{}", "nbd:x"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			s := *sp
			s.Boot = vm.Boot{Kernel: filepath.Join(dir, name), Initrd: filepath.Join(dir, "i"+name), Cmdline: "a,b=c \"d\""}
			write(t, s.Boot.Kernel, kernel, 0o644)
			write(t, s.Boot.Initrd, []byte("the initrd of "+name), 0o644)
			s.Disks = []vm.Disk{{Path: filepath.Join(dir, "d"+name), Serial: "a,b"}, {Path: filepath.Join(dir, "r"+name), ReadOnly: true}}
			write(t, s.Disks[0].Path, make([]byte, 1<<20), 0o644)
			write(t, s.Disks[1].Path, make([]byte, 1<<20), 0o644)
			if ps := vm.Problems(d.Check(&s, info)).Fatal(); len(ps) > 0 {
				t.Fatal(ps)
			}
			l, out := launchOf(t, d, info, &s, values(t, nil))
			end(t, begin(t, d, l))
			r, err := probe.Parse(strings.NewReader(out.console.String()))
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Initrds) != 1 || r.Initrds[0].SHA256 != sha256.Sum256([]byte("the initrd of "+name)) {
				t.Errorf("another initrd: %+v", r.Initrds)
			}
			if r.Cmdline.SHA256 != sha256.Sum256([]byte(s.Boot.Cmdline)) {
				t.Errorf("another command line: %+v", r.Cmdline)
			}
		})
	}
}

// TestIdentity: QEMU is a plain user without capabilities, and its descriptors
// of the values lead to nothing.
func TestIdentity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: starting QEMU as another user needs root")
	}
	d, info, sp := installed(t)
	dir, err := os.MkdirTemp("", "vmcred-qemu-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	b, err := os.ReadFile(sp.Boot.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	sp.Boot = vm.Boot{Kernel: filepath.Join(dir, "kernel"), Cmdline: probe.WordWait}
	write(t, sp.Boot.Kernel, b, 0o644)
	l, _ := launchOf(t, d, info, sp, values(t, map[string]string{"A": "alpha", "BIG": strings.Repeat("b", 70<<10)}))
	l.Identity = &launch.Identity{UID: 65531, GID: 65532}

	var problems vm.Problems
	if _, err := d.Start(t.Context(), l); !errors.As(err, &problems) {
		t.Errorf("a kernel in a directory of root's: %v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := begin(t, d, l)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Uid:\t65531\t65531\t65531\t65531\n", "Gid:\t65532\t65532\t65532\t65532\n", "Groups:\t \n",
		"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", m.PID())); err != nil || len(env) > 0 {
		t.Errorf("environment %q, %v", env, err)
	}
	if n := memoryFiles(t, m.PID()); n != 2 {
		t.Errorf("%d memory files, want 2", n)
	}
	if !strings.Contains(m.Confinement(), "uid 65531") {
		t.Error(m.Confinement())
	}
}

// memoryFiles counts the values' files a process holds; each must be empty.
func memoryFiles(t *testing.T, pid int) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, link := range links {
		to, _ := os.Readlink(link)
		if !strings.HasPrefix(to, "/memfd:smbios") && !strings.HasPrefix(to, "/memfd:fw_cfg") {
			continue
		}
		n++
		if b, err := os.ReadFile(link); err != nil || len(b) > 0 {
			t.Errorf("%s has %d bytes, %v", to, len(b), err)
		}
	}
	return n
}

// TestStopped: a QEMU that the kernel has stopped ignores the button, and dies.
func TestStopped(t *testing.T) {
	d, info, sp := installed(t)
	sp.Boot.Cmdline = probe.WordHang
	l, _ := launchOf(t, d, info, sp, values(t, nil))
	m := begin(t, d, l)
	if err := unix.Kill(m.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func(context.Context) error{"shutdown": m.Shutdown, "quit": m.Quit} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	if exit, _ := end(t, m); exit.Signal != "SIGKILL" || exit.Clean {
		t.Errorf("%+v", exit)
	}
}

// TestKilled: somebody else ends QEMU.
func TestKilled(t *testing.T) {
	d, info, sp := installed(t)
	sp.Boot.Cmdline = probe.WordHang
	for signal, want := range map[syscall.Signal]hypervisor.Exit{
		unix.SIGKILL: {Code: -1, Signal: "SIGKILL"},
		unix.SIGTERM: {Clean: true},
	} {
		l, _ := launchOf(t, d, info, sp, values(t, nil))
		m := begin(t, d, l)
		if err := unix.Kill(m.PID(), signal); err != nil {
			t.Fatal(err)
		}
		exit, _ := end(t, m)
		exit.Detail = "" // "terminating on signal 15 from pid …"
		if exit != want {
			t.Errorf("%v: %+v, want %+v", signal, exit, want)
		}
	}
}

// TestFewDescriptors: the limit is met before QEMU is started, with a hint.
func TestFewDescriptors(t *testing.T) {
	d, l, _ := staged(t, playWell)
	secrets := map[string]string{}
	for i := range 100 {
		secrets[fmt.Sprintf("N%d=", i)] = "x" // by fw_cfg
	}
	l, _ = launchOf(t, d, l.Info, l.Spec, values(t, secrets))
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	before := descriptorsOpen(t)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 60, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := d.Start(t.Context(), l)
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(hintOf(err), "LimitNOFILE") {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	if after := descriptorsOpen(t); len(after) != len(before) {
		t.Errorf("descriptors before %v, after %v", before, after)
	}
}

// TestSharedDisk: QEMU's own lock, in words. It takes the lock of a cloud-hypervisor
// that only reads for one of a QEMU that writes.
func TestSharedDisk(t *testing.T) {
	d, info, sp := installed(t)
	path := filepath.Join(t.TempDir(), "disk")
	write(t, path, make([]byte, 1<<20), 0o600)
	sp.Disks = []vm.Disk{{Path: path, Format: "raw", ReadOnly: true}}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Len: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	l, _ := launchOf(t, d, info, sp, values(t, nil))
	_, err = d.Start(t.Context(), l)
	if err == nil || !strings.Contains(hintOf(err), "another VM") {
		t.Errorf("%v (hint %q)", err, hintOf(err))
	}
	t.Log(err)
}

func TestConsoleFile(t *testing.T) {
	d, info, sp := installed(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "console, log")
	sp.Console = vm.Console{Mode: vm.ConsoleFile, Path: path}
	for range 2 {
		l, out := launchOf(t, d, info, sp, values(t, nil))
		if exit, _ := end(t, begin(t, d, l)); !exit.Clean || out.console.String() != "" {
			t.Errorf("%+v, console %q", exit, out.console.String())
		}
	}
	b, err := os.ReadFile(path)
	if err != nil || strings.Count(string(b), probe.Last) != 2 {
		t.Errorf("want both reports, one after the other: %v\n%s", err, b)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	sp.Console.Path = filepath.Join(dir, "link")
	if err := os.Symlink(path, sp.Console.Path); err != nil {
		t.Fatal(err)
	}
	l, _ := launchOf(t, d, info, sp, values(t, nil))
	if _, err := d.Start(t.Context(), l); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link at the end: %v", err)
	}
}

func TestConsoleSocket(t *testing.T) {
	d, info, sp := installed(t)
	sp.Console.Mode = vm.ConsoleSocket
	sp.Boot.Cmdline = probe.WordWait
	l, _ := launchOf(t, d, info, sp, values(t, nil))
	path := filepath.Join(l.RunDir, "console.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()

	m := begin(t, d, l)
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := m.Kill(); err != nil { // QEMU removes the socket itself if it can
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, c) // ends, one way or the other
	end(t, m)
	if hostcheck.Exists(path) {
		t.Error("the socket is left")
	}
	l.RunDir = filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(l.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), l); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func TestConsoleOff(t *testing.T) {
	d, info, sp := installed(t)
	sp.Console.Mode = vm.ConsoleOff
	l, out := launchOf(t, d, info, sp, values(t, nil))
	if exit, _ := end(t, begin(t, d, l)); !exit.Clean || out.console.String() != "" {
		t.Errorf("%+v, console %q", exit, out.console.String())
	}
}

// stuck is a terminal that somebody stopped.
type stuck struct {
	once sync.Once
	full chan struct{}
	free chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	s.once.Do(func() { close(s.full) })
	<-s.free
	return len(b), nil
}

// TestConsoleStuck: the guest goes on, and off, without a reader.
func TestConsoleStuck(t *testing.T) {
	d, info, sp := installed(t)
	l, _ := launchOf(t, d, info, sp, values(t, map[string]string{"A": strings.Repeat("a", 60<<10)}))
	w := &stuck{full: make(chan struct{}), free: make(chan struct{})}
	l.Console = w
	m := begin(t, d, l)
	<-w.full
	exit, events := end(t, m)
	close(w.free)
	if !exit.Clean || events[len(events)-1] != hypervisor.EventPowerOff {
		t.Errorf("%+v %v", exit, events)
	}
}
