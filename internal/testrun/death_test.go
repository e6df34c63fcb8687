// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/leak"
)

// killsEnv says how often runner and hypervisor are killed, each.
const killsEnv = "VMCRED_KILLS"

func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv(killsEnv)
	if text == "" {
		return 10
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number of kills", killsEnv, text)
	}
	return n
}

// mortal is a host whose VM is killed again and again.
type mortal struct {
	*host
	args  []string
	tap   string // the name of one that the VM has; empty: none
	share bool   // it has one, with a virtiofsd behind it
	began time.Time
	phase map[string]int // how often it was killed in which
}

func newMortal(t *testing.T, k kind) *mortal {
	t.Helper()
	m := &mortal{began: time.Now(), phase: map[string]int{}}
	if k.files || os.Geteuid() != 0 {
		m.host = newHost(t, k, k.few())
	} else {
		m.host = newHostOf(t, k, 0, k.few())
		makeUser(t, m.name)
	}
	m.args, _ = m.bySource(t, "--credentials", "wait")
	return m
}

func (m *mortal) launch(t *testing.T, word string) *running {
	t.Helper()
	m.spec(t, word, func(string) string { return "" })
	return start(t, m.command(t, nil, append([]string{"run", m.file()}, m.args...)...))
}

// whole is how long a start takes until the guest has reported. The first one
// takes longer: it finds out about this host what the others remember.
func (m *mortal) whole(t *testing.T) time.Duration {
	t.Helper()
	m.startsAnew(t)
	begin := time.Now()
	r := m.launch(t, "wait")
	r.awaitGuest(t)
	took := time.Since(begin)
	m.wantServer(t)
	r.stop(t)
	return took
}

// moments are n random moments, one in each n-th of a start and a bit more, in
// any order: so every phase has its share.
func moments(n int, whole time.Duration) []time.Duration {
	var all []time.Duration
	for i := range n {
		all = append(all, time.Duration((float64(i)+rand.Float64())/float64(n)*1.3*float64(whole)))
	}
	rand.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// note remembers in which phase the VM was.
func (m *mortal) note(r *running) {
	phase := "before the lock"
	if _, err := os.Lstat(filepath.Join(m.runtime(), "lock")); err == nil {
		phase = "collect and start"
	}
	if strings.Contains(r.err.String(), "delivered ") {
		phase = "delivered"
	}
	if strings.Contains(r.out.String(), probe.Last) {
		phase = "running"
	}
	m.phase[phase]++
}

// startsAnew: whatever died before, the next start works and clears up.
func (m *mortal) startsAnew(t *testing.T) {
	t.Helper()
	m.gone(t)
	m.detached(t)
	r := m.launch(t, "")
	if code := r.end(t); code != 0 || !strings.Contains(r.out.String(), probe.Last) {
		t.Errorf("the next start exits %d: %s\n%s", code, r.out.String(), r.err.String())
	}
	m.clean(t)
}

// leftNothing: no value in any file, and nothing but what is remembered of this
// host in the runtime directory. A soak searches the whole machine, which takes
// as long as many kills.
func (m *mortal) leftNothing(t *testing.T) {
	t.Helper()
	s := m.search(t)
	o := leak.System{Since: m.began}
	if os.Getenv(killsEnv) == "" {
		o.Roots = []string{m.dir, "/run", "/dev/shm", "/var/tmp", "/var/log", "/var/lib/systemd"}
		o.Roots = slices.DeleteFunc(o.Roots, func(dir string) bool { _, err := os.Stat(dir); return err != nil })
	}
	if err := s.System(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	wantClean(t, s)
	entries, err := os.ReadDir(filepath.Join(m.run, "vmcred"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		others := m.uid == 0 && e.Name() != m.name // root's VMs are all in one place
		if !others && (e.IsDir() || !strings.HasSuffix(e.Name(), ".json")) {
			t.Errorf("%s is left in the runtime directory", e.Name())
		}
	}
	t.Logf("killed %v", m.phase)
}

func TestKillTheRunner(t *testing.T) { onEach(t, killTheRunner) }

func killTheRunner(t *testing.T, k kind) {
	m := newMortal(t, k)
	m.addDevices(t)
	for i, d := range moments(kills(t), m.whole(t)) {
		r := m.launch(t, "wait")
		select {
		case <-time.After(d): // the moment is random, no event is waited for
		case <-r.ended:
			t.Fatalf("it ended by itself: %s", r.err.String())
		}
		m.note(r)
		if err := r.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		r.end(t)
		m.saysDead(t)
		m.startsAnew(t)
		if t.Failed() {
			t.Fatalf("after kill %d, %s after the start", i+1, d)
		}
	}
	m.leftNothing(t)
}

func TestKillTheHypervisor(t *testing.T) { onEach(t, killTheHypervisor) }

func killTheHypervisor(t *testing.T, k kind) {
	m := newMortal(t, k)
	m.addDevices(t)
	for i, d := range moments(kills(t), m.whole(t)) {
		r := m.launch(t, "wait")
		pid := m.awaitVMM(t, r)
		select {
		case <-time.After(d): // as above
		case <-r.ended:
			t.Fatalf("it ended by itself: %s", r.err.String())
		}
		m.note(r)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := r.end(t); code != 1 || !strings.Contains(strings.ToLower(r.err.String()), "kill") {
			t.Errorf("it exits %d: %s", code, r.err.String())
		}
		m.saysDead(t)
		m.clean(t)
		m.startsAnew(t)
		if t.Failed() {
			t.Fatalf("after kill %d, %s after the hypervisor's start", i+1, d)
		}
	}
	m.leftNothing(t)
}

// awaitVMM waits for the hypervisor's process.
func (m *mortal) awaitVMM(t *testing.T, r *running) int {
	t.Helper()
	tick := time.NewTicker(time.Millisecond) // nothing tells an ordinary user of a grandchild's exec
	defer tick.Stop()
	late := time.After(patience)
	for {
		if pid := m.vmm(); pid != 0 {
			return pid
		}
		select {
		case <-tick.C:
		case <-r.ended:
			t.Fatalf("it ended: %s", r.err.String())
		case <-late:
			t.Fatal("there is no hypervisor")
		}
	}
}

// The lock of a process that died refuses nobody, that of one that lives does.
func TestTheLock(t *testing.T) { onEach(t, theLock) }

func theLock(t *testing.T, k kind) {
	m := newMortal(t, k)
	r := m.launch(t, "wait")
	r.awaitGuest(t)
	second := m.launch(t, "wait")
	if code := second.end(t); code != 78 || !strings.Contains(second.err.String(), "runs already, started by process "+strconv.Itoa(r.Process.Pid)) {
		t.Errorf("a second start exits %d: %s", code, second.err.String())
	}
	if m.vmm() == 0 {
		t.Error("the second start ended the first VM")
	}
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.end(t)
	m.gone(t)
	if _, err := os.Stat(filepath.Join(m.runtime(), "lock")); err != nil {
		t.Fatalf("the dead one left no lock, so this shows nothing: %v", err)
	}
	stale := filepath.Join(m.runtime(), "console.sock")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	next := m.launch(t, "wait")
	next.awaitGuest(t)
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the dead one left is there still: %v", err)
	}
	next.stop(t)
	m.clean(t)
}

// A second signal does not wait for a guest that is deaf, whatever stop-timeout
// says: here that is longer than any test waits.
func TestADeafGuestIsStopped(t *testing.T) { onEach(t, aDeafGuestIsStopped) }

func aDeafGuestIsStopped(t *testing.T, k kind) {
	m := newMortal(t, k)
	heard := m.listen(t)
	m.spec(t, "hang", func(string) string { return "" })
	r := start(t, m.command(t, []string{"NOTIFY_SOCKET=" + heard.LocalAddr().String()}, append([]string{"run", m.file()}, m.args...)...))
	r.awaitGuest(t)
	awaitState(t, heard, "READY=1")
	r.insist(t)
	awaitState(t, heard, "STOPPING=1")
	if code := r.end(t); code != 0 {
		t.Errorf("it exits %d: %s", code, r.err.String())
	}
	m.clean(t)
}

// listen makes a socket for what a service says to systemd.
func (m *mortal) listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(m.dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return c
}

// awaitState reads until the service says that it is in a state.
func awaitState(t *testing.T, c *net.UnixConn, state string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	for said := ""; !strings.Contains(said, state); {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("it never said %s: %v", state, err)
		}
		said = string(b[:n])
	}
}
