// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A hypervisor that crashes leaves no core file, and nothing of its values where
// a crash is written down: the program's own words, the kernel's log, the journal.
func TestACrashLeavesNoCore(t *testing.T) {
	if !coresAreFiles(t) {
		t.Log("a core dump is no file here: that none is made is not shown, that no value is in a file or log is")
	}
	onEach(t, func(t *testing.T, k kind) {
		m := newMortal(t, k)
		r := m.launch(t, "wait")
		r.awaitGuest(t)
		pid := m.vmm()
		for _, dir := range coreDirectories(t, pid) {
			if before := cores(t, dir, m.began); len(before) > 0 {
				t.Fatalf("somebody else leaves core files in %s: %v", dir, before)
			}
		}
		if limit := coreLimit(t, pid); limit != "0" && limit != "1" {
			t.Errorf("it may leave a core file of %s bytes", limit)
		}
		dirs := coreDirectories(t, pid)
		r.crash(t, pid)
		// A stand-in is a Go program, which dies of it in its own way.
		if code := r.end(t); code != 1 || k.real && !strings.Contains(r.err.String(), "SIGSEGV") {
			t.Errorf("it exits %d: %s", code, r.err.String())
		}
		m.saysDead(t)
		m.clean(t)
		for _, dir := range dirs {
			if left := cores(t, dir, m.began); len(left) > 0 {
				t.Errorf("core files: %v", left)
			}
		}
		m.leftNothing(t)
	})
}

// crash has the hypervisor die as of a wild pointer. Rust's own handler forgives one
// signal, for it waits for the pointer to be followed again.
func (r *running) crash(t *testing.T, pid int) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for {
		_ = syscall.Kill(pid, syscall.SIGSEGV) // it may be gone
		select {
		case <-again.C:
		case <-r.ended:
			return
		case <-late:
			t.Fatalf("it does not end: %s", r.err.String())
		}
	}
}

// coreLimit is what process pid may leave, in bytes, as it says itself.
func coreLimit(t *testing.T, pid int) string {
	t.Helper()
	limits, err := os.ReadFile(proc(pid, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			return strings.Fields(rest)[0]
		}
	}
	t.Fatalf("no limit: %s", limits)
	return ""
}

// coresAreFiles reports whether a process without a limit leaves a core file in its
// working directory: the same look finds it.
func coresAreFiles(t *testing.T) bool {
	t.Helper()
	dir, began := t.TempDir(), time.Now().Add(-time.Minute)
	c := exec.Command("sh", "-c", "ulimit -c unlimited && kill -SEGV $$")
	c.Dir = dir
	_ = c.Run() // it dies
	return len(cores(t, dir, began)) > 0
}

// coreDirectories are where the kernel would put a process's core file.
func coreDirectories(t *testing.T, pid int) []string {
	t.Helper()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(string(pattern), "/") {
		return []string{filepath.Dir(string(pattern))}
	}
	cwd, err := os.Readlink(proc(pid, "cwd"))
	if err != nil {
		t.Fatal(err)
	}
	return []string{cwd}
}

// cores are the new core files in a directory: ELF files of type ET_CORE (elf(5)).
func cores(t *testing.T, dir string, since time.Time) []string {
	t.Helper()
	const typeAt, etCore = 16, 4
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.ModTime().Before(since) {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		head := make([]byte, typeAt+1)
		if n, _ := f.Read(head); n == len(head) && string(head[:4]) == "\x7fELF" && head[typeAt] == etCore {
			found = append(found, f.Name())
		}
		_ = f.Close()
	}
	return found
}
