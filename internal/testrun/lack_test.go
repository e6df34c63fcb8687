// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
)

// What a host may lack. Whatever it is, the VM runs with all its values or the
// program says what is wrong and what to do, and leaves nothing.

// memlockEnv is the limit on locked memory, in bytes, for the part without memfd_secret.
const memlockEnv = "VMCRED_TEST_MEMLOCK"

// playWithoutMemfdSecret becomes its arguments on a kernel that has no
// memfd_secret(2), as before Linux 5.14 and as in many containers.
func playWithoutMemfdSecret() int {
	n, err := strconv.ParseUint(os.Getenv(memlockEnv), 10, 64)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: n, Max: n})
	}
	runtime.LockOSThread() // the filter is this thread's, and so execve(2) must be
	if err == nil {
		err = denyMemfdSecret()
	}
	if err == nil {
		err = syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "without memfd_secret:", err)
	return 3
}

// denyMemfdSecret installs a seccomp(2) filter: that call does not exist, all others do.
func denyMemfdSecret() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MEMFD_SECRET, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// outcome says how a start under some lack ended: whole, or refused with the words.
func outcome(t *testing.T, h *host, r *running, words ...string) (started bool) {
	t.Helper()
	code := r.end(t)
	said := r.err.String()
	switch code {
	case 0:
		if !strings.Contains(r.out.String(), probe.Last) {
			t.Errorf("it exits 0 and no guest ran: %s", said)
		}
	case 1, 78:
		if strings.Contains(r.out.String(), probe.Last) || !strings.Contains(said, "hint: ") {
			t.Errorf("it exits %d without a hint, or after the guest ran: %s", code, said)
		}
		for _, w := range words {
			if !strings.Contains(said, w) {
				t.Errorf("it does not say %q: %s", w, said)
			}
		}
	default:
		t.Errorf("it exits %d (%v): %s", code, r.ProcessState, said)
	}
	for _, bad := range []string{"panic", "goroutine ", "runtime:"} {
		if strings.Contains(said, bad) {
			t.Errorf("it says %q: %s", bad, said)
		}
	}
	h.clean(t)
	return code == 0
}

// run is the arguments of a start that ends by itself.
func (h *host) runArgs(t *testing.T) []string {
	t.Helper()
	args, _ := h.bySource(t, "--credentials", "")
	return append([]string{"run", h.file()}, args...)
}

// Memory that cannot be locked holds no value: without memfd_secret(2), each
// limit gives a whole start or a refusal, and the least gives a refusal.
func TestLockedMemoryIsLimited(t *testing.T) {
	h := newHost(t, qemu(), qemu().few())
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{0, 4 << 10, 60 << 10, 64 << 10, 68 << 10, 80 << 10, 128 << 10, 8 << 20} {
		t.Run(fmt.Sprintf("%d bytes", limit), func(t *testing.T) {
			c := h.as(exec.Command("/proc/self/exe", append([]string{path}, h.runArgs(t)...)...),
				partEnv+"=without memfd_secret", memlockEnv+"="+strconv.Itoa(limit))
			started := outcome(t, h, start(t, c), "cannot lock", "ulimit -l")
			if limit < 64<<10 && started || limit == 8<<20 && !started {
				t.Errorf("with a limit of %d bytes, started is %v", limit, started)
			}
			t.Logf("started: %v", started)
		})
	}
}

// fewest is how many descriptors a Go program takes to run at all: it polls
// with two of its own, and dies without them.
const fewest = 12

// Each number of descriptors gives a whole start or an error.
func TestDescriptorsAreLimited(t *testing.T) {
	h := newHost(t, qemu(), qemu().many(200))
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	results := map[bool]int{}
	for _, limit := range []int{4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 36, 200} {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			c := h.as(exec.Command("sh", append([]string{"-c", `ulimit -n "$1"; shift; exec "$@"`, "sh", strconv.Itoa(limit), path}, h.runArgs(t)...)...))
			r := start(t, c)
			if limit < fewest {
				wantDead(t, h, r)
				return
			}
			started := outcome(t, h, r)
			results[started]++
			if (limit == 200) != started {
				t.Errorf("with %d descriptors, started is %v", limit, started)
			}
		})
	}
	t.Logf("started: %d, refused: %d", results[true], results[false])
}

// wantDead: it ends, nothing of it is left, and what it says holds no value.
func wantDead(t *testing.T, h *host, r *running) {
	t.Helper()
	if code := r.end(t); code == 0 {
		t.Error("it exits 0")
	}
	for _, c := range h.all {
		if strings.Contains(r.err.String()+r.out.String(), string(c.value)) {
			t.Errorf("it says the value of %s", c.name)
		}
	}
	h.clean(t)
}

// A runtime directory that cannot be written.
func TestReadOnlyRuntimeDirectory(t *testing.T) {
	h := newHost(t, qemu(), qemu().few())
	if err := os.Chmod(h.run, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(h.run, 0o700) })
	if outcome(t, h, start(t, h.command(t, nil, h.runArgs(t)...)), h.run, "permission denied") {
		t.Error("it started")
	}
}

// A file system that is full, of bytes or of files.
func TestFullRuntimeDirectory(t *testing.T) {
	needRoot(t, "it mounts a small file system")
	for what, options := range map[string]string{"bytes": "size=16k", "files": "nr_inodes=4"} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t, qemu(), qemu().few())
			if err := unix.Mount("tmpfs", h.run, "tmpfs", 0, options+",mode=0700,uid="+strconv.Itoa(h.uid)); err != nil {
				t.Skipf("SKIPPED, nothing was shown: needs to mount a tmpfs: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(h.run, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			fill(t, h.run, what == "files")
			if outcome(t, h, start(t, h.command(t, nil, h.runArgs(t)...)), "no space left on device", h.run) {
				t.Error("it started")
			}
		})
	}
}

// fill fills a file system with one file, or with many empty ones.
func fill(t *testing.T, dir string, files bool) {
	t.Helper()
	for n := 0; ; n++ {
		f, err := os.OpenFile(filepath.Join(dir, "filler"+strconv.Itoa(n)), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		for err == nil && !files {
			_, err = f.Write(make([]byte, 4096))
		}
		f.Close()
		if !files {
			return
		}
		if n > 1000 {
			t.Fatal("this file system has no end")
		}
	}
}

// A standard output that nobody reads, that is closed, or whose reader is gone:
// the VM runs, and stops when it is told to.
func TestStandardOutputThatLeadsNowhere(t *testing.T) {
	for name, open := range map[string]func(t *testing.T, c *exec.Cmd){
		"a full pipe": func(t *testing.T, c *exec.Cmd) {
			_, w := pipe(t)
			fillPipe(t, w)
			c.Stdout = w
		},
		"a pipe whose reader is gone": func(t *testing.T, c *exec.Cmd) {
			r, w := pipe(t)
			r.Close()
			c.Stdout = w
		},
		"closed": func(_ *testing.T, c *exec.Cmd) {
			c.Args = append([]string{"sh", "-c", `exec "$@" >&-`, "sh"}, c.Args...)
			c.Path = "/bin/sh"
		},
		"a full device": func(t *testing.T, c *exec.Cmd) {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			c.Stdout = f
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMortal(t, qemu())
			heard := m.listen(t)
			c := m.command(t, []string{"NOTIFY_SOCKET=" + heard.LocalAddr().String()}, append([]string{"run", m.file()}, m.args...)...)
			open(t, c)
			r := start(t, c)
			awaitState(t, heard, "READY=1")
			r.insist(t)
			m.clean(t)
		})
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func fillPipe(t *testing.T, w *os.File) {
	t.Helper()
	n, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}
