// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/cli"
	"github.com/vmcred/vmcred/leak"
)

// leftEnv names the file whose digest the leaky runner takes, carelessly.
const leftEnv = "VMCRED_TEST_LEFT"

// playRunner is the program with one more ear: SIGUSR1 collects the garbage and
// says so on descriptor 3.
func playRunner(leaky bool) int {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGUSR1)
	said := os.NewFile(3, "collected")
	h := sha256.New()
	if leaky {
		b, err := os.ReadFile(os.Getenv(leftEnv))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		h.Write(b)
		h.Sum(nil)
		h.Reset() // which forgets the length, not the bytes
		clear(b)
	}
	go func() {
		for range ch {
			runtime.GC()
			runtime.GC()
			fmt.Fprintln(said, "collected")
		}
	}()
	defer runtime.KeepAlive(h)
	return cli.Main(append([]string{"vmcred"}, os.Args[1:]...))
}

// startRunner starts this test's own binary as the program. collect has it
// collect its garbage.
func startRunner(t *testing.T, h *host, part string, args, env []string) (r *running, collect func()) {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c := h.as(exec.Command("/proc/self/exe", args...), append(env, partEnv+"="+part)...)
	c.ExtraFiles = []*os.File{out}
	r = start(t, c)
	out.Close()
	lines := bufio.NewScanner(in)
	return r, func() {
		t.Helper()
		if err := r.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != "collected" {
			t.Fatalf("it did not collect its garbage: %q %v", lines.Text(), lines.Err())
		}
	}
}

// After delivery the runner holds no copy of any value in any form, before and
// after a garbage collection; the hypervisor's copies are counted.
func TestMemoryAfterDelivery(t *testing.T) {
	needRoot(t, "it reads another process's memory")
	onEach(t, memoryAfterDelivery)
}

func memoryAfterDelivery(t *testing.T, k kind) {
	sets := [][]credentialFile{k.few(), k.many(200)}
	if k.real && !k.files { // its copies are written down in docs/security.md
		sets = append(sets, k.many(20))
	}
	for _, all := range sets {
		t.Run(fmt.Sprintf("%d credentials", len(all)), func(t *testing.T) {
			h := newHost(t, k, all)
			args, env := h.bySource(t, "--credentials", "wait")
			args = append([]string{"run", h.file()}, args...)
			r, collect := startRunner(t, h, "runner", args, env)
			r.awaitGuest(t)
			wantChannels(t, r, k.channels()...)
			wantNoCopy(t, h, r.Process.Pid, "before a collection")
			collect()
			wantNoCopy(t, h, r.Process.Pid, "after a collection")
			countVMM(t, h)
			r.stop(t)
			h.clean(t)

			real := start(t, h.command(t, env, args...))
			real.awaitGuest(t)
			wantNoCopy(t, h, real.Process.Pid, "the program itself")
			real.stop(t)
			h.clean(t)
		})
	}
}

// What a careless runner leaves is found by the same search.
func TestMemorySearchFindsAHashLeftUnwiped(t *testing.T) {
	needRoot(t, "it reads another process's memory")
	h := newHost(t, qemu(), qemu().few()[:1])
	args, env := h.bySource(t, "--credentials", "wait")
	env = append(env, leftEnv+"="+filepath.Join(h.creds, h.all[0].name))
	r, collect := startRunner(t, h, "leaky runner", append([]string{"run", h.file()}, args...), env)
	r.awaitGuest(t)
	collect()
	if m := memory(t, h, r.Process.Pid); m.Total() == 0 {
		t.Errorf("nothing was found: %+v", m)
	}
	r.stop(t)
}

func wantChannels(t *testing.T, r *running, channels ...string) {
	t.Helper()
	for _, c := range channels {
		r.await(t, &r.err, "bytes by "+c+"\n")
	}
}

func memory(t *testing.T, h *host, pid int) *leak.MemoryCount {
	t.Helper()
	m, err := h.search(t).Memory(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	if m.Bytes < 4<<20 {
		t.Errorf("only %d bytes of process %d were searched", m.Bytes, pid)
	}
	return m
}

func wantNoCopy(t *testing.T, h *host, pid int, when string) {
	t.Helper()
	m := memory(t, h, pid)
	if m.Total() != 0 || m.Unreadable != 0 {
		t.Errorf("%s: %d copies, %d bytes that could not be read: %+v", when, m.Total(), m.Unreadable, m.Copies)
	}
	t.Logf("%s: %d copies in %d bytes", when, m.Total(), m.Bytes)
}

// countVMM says how many copies the hypervisor has, and that its memory files are empty.
func countVMM(t *testing.T, h *host) {
	t.Helper()
	pid := h.vmm()
	if pid == 0 {
		t.Fatal("there is no hypervisor")
	}
	m := memory(t, h, pid)
	// At least its own and the guest's: else this search finds nothing. At most some
	// more for each value, of which the longest count twice, by their ends.
	least, most := 2*len(h.all), 12*(len(h.all)+1)
	if !h.real {
		most = m.Total() // a stand-in's copies are its own
	}
	if m.Total() < least || m.Total() > most {
		t.Errorf("%d copies of %d values: %+v", m.Total(), len(h.all), m.Copies)
	}
	perMapping, perForm := map[string]int{}, map[string]int{}
	for _, c := range m.Copies {
		perForm[strings.TrimPrefix(c.Part+" "+c.Form, " ")] += c.Count
		for name, n := range c.Mappings {
			perMapping[name] += n
			if strings.Contains(name, "memfd:smbios") || strings.Contains(name, "memfd:fw_cfg") {
				t.Errorf("%d copies in %s", n, name)
			}
		}
	}
	t.Logf("the hypervisor holds %d copies of %d values: by form %v, by mapping %v", m.Total(), len(h.all), perForm, perMapping)
	files, bytes := memoryFiles(t, pid)
	if h.files && files < 2 || bytes != 0 {
		t.Errorf("it holds %d memory files with %d bytes in all", files, bytes)
	}
	t.Logf("its %d memory files hold %d bytes", files, bytes)
}

// memoryFiles counts the memory files that a process has open and their bytes.
func memoryFiles(t *testing.T, pid int) (files int, bytes int64) {
	t.Helper()
	for _, fd := range descriptors(t, pid) {
		path := filepath.Join("/proc", strconv.Itoa(pid), "fd", fd)
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, "/memfd:") {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		files++
		bytes += st.Size
	}
	return files, bytes
}

func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, e := range list {
		names[e.Name()] = true
	}
	return slices.Sorted(maps.Keys(names))
}
