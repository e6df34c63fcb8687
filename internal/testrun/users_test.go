// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// attacker is a process of some user that tries what it is told.
type attacker struct {
	in    io.WriteCloser
	lines *bufio.Scanner
}

func newAttacker(t *testing.T, uid, gid int) *attacker {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env, c.Dir, c.Stderr = []string{partEnv + "=attacker"}, "/", os.Stderr
	if uid != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = c.Wait() })
	return &attacker{in, bufio.NewScanner(out)}
}

func (a *attacker) try(t *testing.T, target, attempt string) string {
	t.Helper()
	if _, err := fmt.Fprintln(a.in, target, attempt); err != nil {
		t.Fatal(err)
	}
	if !a.lines.Scan() {
		t.Fatalf("the attacker died of %s on %s", attempt, target)
	}
	return a.lines.Text()
}

// makeUser makes a VM's system user, as vmcred's own hint says, for as long as
// the test runs.
func makeUser(t *testing.T, vm string) (uid, gid int) {
	t.Helper()
	return makeUserNamed(t, "vmcred-"+vm)
}

func makeUserNamed(t *testing.T, name string) (uid, gid int) {
	t.Helper()
	needCommands(t, "useradd", "userdel")
	change(t, "useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name)
	t.Cleanup(func() { change(t, "userdel", name) })
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err = strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// change runs a command on the list of users, again if someone else has its lock.
func change(t *testing.T, argv ...string) {
	t.Helper()
	for range 50 {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err == nil {
			return
		}
		if !strings.Contains(string(out), "lock") {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
		<-time.After(100 * time.Millisecond) // no event tells of that lock
	}
	t.Fatalf("%v: the list of users stays locked", argv)
}

// victims is a VM that root started, with the processes and paths that know its values.
func victims(t *testing.T, k kind) (h *host, pids map[string]int, paths map[string]string) {
	t.Helper()
	h = newHostOf(t, k, 0, k.few())
	if !k.files { // a vsock takes a device of the host's, or a program, with QEMU
		h.more = "notify: boot\nvsock: {cid: 3}\n"
	}
	uid, gid := makeUser(t, h.name)
	args, env := h.bySource(t, "--credentials", "wait")
	r := start(t, h.command(t, env, append([]string{"run", h.file()}, args...)...))
	t.Cleanup(func() { h.clean(t) })
	t.Cleanup(func() { r.stop(t) })
	r.awaitGuest(t)
	vmm := h.vmm()
	if vmm == 0 {
		t.Fatal("there is no hypervisor")
	}
	if gotUID, gotGID := ownerOf(t, vmm); gotUID != uid || gotGID != gid {
		t.Fatalf("the hypervisor runs as %d:%d, not as %d:%d", gotUID, gotGID, uid, gid)
	}
	pids = map[string]int{"runner": r.Process.Pid, "hypervisor": vmm}
	paths = map[string]string{"runtime directory": h.runtime(), "credentials directory": h.creds}
	for _, c := range h.all[:1] {
		paths["a credential's file"] = filepath.Join(h.creds, c.name)
	}
	return h, pids, paths
}

// ownerOf is whom a process runs as.
func ownerOf(t *testing.T, pid int) (uid, gid int) {
	t.Helper()
	st, err := os.Stat(proc(pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return int(sys.Uid), int(sys.Gid)
}

// A second VM's user can read nothing of the first VM; the first VM's own user,
// whom its hypervisor runs as, can read nothing of its runner. The control is
// someone who may: root, or for the hypervisor its own user.
func TestOtherUsersReadNothing(t *testing.T) {
	needRoot(t, "it runs processes of three users")
	onEach(t, otherUsersReadNothing)
}

func otherUsersReadNothing(t *testing.T, k kind) {
	h, pids, paths := victims(t, k)
	own, err := user.Lookup("vmcred-" + h.name)
	if err != nil {
		t.Fatal(err)
	}
	ownUID, _ := strconv.Atoi(own.Uid)
	ownGID, _ := strconv.Atoi(own.Gid)
	second := newHostOf(t, k, 0, k.few())
	otherUID, otherGID := makeUser(t, second.name)
	other, itself, root := newAttacker(t, otherUID, otherGID), newAttacker(t, ownUID, ownGID), newAttacker(t, 0, 0)
	names := slices.Sorted(maps.Keys(attempts()))
	for _, part := range []string{"runner", "hypervisor"} {
		for _, name := range names {
			t.Run("a second VM's user on the "+part+"/"+name, func(t *testing.T) {
				controls := []*attacker{root}
				if part == "hypervisor" {
					controls = append(controls, itself) // for a root without all capabilities
				}
				wantRefused(t, other, strconv.Itoa(pids[part]), name, controls...)
			})
		}
	}
	for _, name := range names {
		t.Run("the VM's own user on the runner/"+name, func(t *testing.T) {
			wantRefused(t, itself, strconv.Itoa(pids["runner"]), name, root)
		})
	}
	for who, a := range map[string]*attacker{"a second VM's user": other, "the VM's own user": itself} {
		for what, path := range paths {
			for _, name := range slices.Sorted(maps.Keys(onPaths())) {
				if st, err := os.Stat(path); err != nil || st.IsDir() == (name == "read") || !st.IsDir() && name != "watch" && name != "read" {
					continue
				}
				t.Run(who+" on the "+what+"/"+name, func(t *testing.T) { wantRefused(t, a, path, name, root) })
			}
		}
	}
	ownReach(t, h, itself)
	nobodyConnects(t, h, pids, other, itself)
}

func wantRefused(t *testing.T, a *attacker, target, attempt string, controls ...*attacker) {
	t.Helper()
	if got := a.try(t, target, attempt); !strings.HasPrefix(got, "refused: ") {
		t.Errorf("it says %q", got)
	}
	var got []string
	for _, c := range controls {
		got = append(got, c.try(t, target, attempt))
	}
	if !slices.Contains(got, "done") {
		t.Errorf("who may do it says %q: this attempt shows nothing", got)
	}
}

// ownReach says what the VM's own user has of its own hypervisor: they are one
// domain. No value is behind a descriptor even then.
func ownReach(t *testing.T, h *host, itself *attacker) {
	t.Helper()
	vmm := h.vmm()
	var through []string
	for _, name := range slices.Sorted(maps.Keys(attempts())) {
		if itself.try(t, strconv.Itoa(vmm), name) == "done" {
			through = append(through, name)
		}
	}
	t.Logf("the VM's own user gets through to its own hypervisor with: %s", strings.Join(through, ", "))
	if files, bytes := memoryFiles(t, vmm); h.files && files < 2 || bytes != 0 {
		t.Errorf("%d memory files with %d bytes", files, bytes)
	}
}
