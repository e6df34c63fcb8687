// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for machines far slower than any this was tried on. It decides
// about nothing but how long a test that hangs takes to fail.
const patience = 5 * time.Minute

// self is where the container has this very test program.
const self = "/opt/testhost"

// container is a host with a real systemd as PID 1: a directory with an /etc of
// its own and this machine's /usr, or that of another system.
type container struct {
	system string // the root directory whose /usr it is; empty: this machine's
	dir    string // of its files on this machine
	leader int    // its PID 1, as this machine numbers it
	booted time.Time
	cmd    *exec.Cmd
	said   *bytes.Buffer // by systemd-nspawn and the console; read it once done
	done   chan struct{} // closed when systemd-nspawn has ended
}

// needs skips the test where it cannot work, and says why.
func needs(t *testing.T) {
	t.Helper()
	skip := func(format string, a ...any) {
		t.Helper()
		t.Skipf("SKIPPED, no unit was started by a real systemd: "+format, a...)
	}
	if os.Geteuid() != 0 {
		skip("needs root, to boot a container")
	}
	for program, pkg := range map[string]string{
		"systemd-nspawn": "systemd-container", "qemu-system-x86_64": "qemu-system-x86", "make": "make", "useradd": "passwd",
	} {
		if _, err := exec.LookPath(program); err != nil {
			skip("needs %s (package %s)", program, pkg)
		}
	}
	// What a container of its own may forbid: both are all that follows needs.
	probe := exec.Command("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/run")
	if out, err := probe.CombinedOutput(); err != nil {
		skip("needs to make namespaces and mounts, and unshare says: %v %s", err, out)
	}
	cgroups, err := makeCgroups()
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		skip("needs to make cgroups: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	if err := removeCgroups(cgroups); err != nil {
		t.Fatal(err)
	}
}

// boot starts the container, whose files are below dir, and returns when its
// systemd has started. Binds are options of systemd-nspawn. At the test's end
// nothing of it is left.
func boot(t *testing.T, dir string, binds ...string) *container {
	t.Helper()
	return bootSystem(t, "", dir, binds...)
}

// bootSystem is boot with the /usr below another root directory.
func bootSystem(t *testing.T, system, dir string, binds ...string) *container {
	t.Helper()
	before := runState()
	c := &container{system: system, dir: dir, done: make(chan struct{}), said: &bytes.Buffer{}, booted: time.Now()}
	root := c.makeRoot(t)
	cgroups, err := makeCgroups()
	if err != nil {
		t.Fatal(err)
	}
	janitor := c.hire(t, cgroups)
	t.Cleanup(func() {
		defer janitor()
		c.end(t)
		if err := removeCgroups(cgroups); err != nil {
			t.Errorf("left behind: %v", err)
		}
		for _, what := range append(c.traces(), newIn(before, runState())...) {
			t.Errorf("left behind: %s", what)
		}
	})
	notify := filepath.Join(c.dir, "notify")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	args := []string{
		"--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child=KILL",
		"testdata/boot.sh", strings.Join(cgroups, " "),
		"systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes",
		"--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--directory=" + root,
		// Of a real host, which these are not kept from: locked memory and Landlock.
		"--system-call-filter=@memlock memfd_secret landlock_create_ruleset landlock_add_rule landlock_restrict_self",
		"--bind-ro=" + c.system + "/usr:/usr",
	}
	args = append(append(args, binds...), "systemd.unit=test.target")
	c.cmd = exec.Command("unshare", args...)
	c.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + notify, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"}
	c.cmd.Stdout, c.cmd.Stderr = c.said, c.said
	// A test that is killed takes unshare along, which takes the namespace along.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
		_ = listener.Close()
	}()
	c.await(t, listener, filepath.Base(cgroups[0]))
	return c
}

// hire has somebody else tidy up if this process cannot any more. What it
// returns lets them go.
func (c *container) hire(t *testing.T, cgroups []string) func() {
	t.Helper()
	cmd := exec.Command("testdata/janitor.sh", append([]string{c.dir}, cgroups...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	end, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(errors.Join(err, removeCgroups(cgroups)))
	}
	return func() { _ = end.Close(); _ = cmd.Wait() }
}

// await reads what systemd-nspawn tells its own supervisor, until PID 1 is ready.
func (c *container) await(t *testing.T, listener *net.UnixConn, cgroup string) {
	t.Helper()
	buf := make([]byte, 8<<10)
	_ = listener.SetReadDeadline(time.Now().Add(patience))
	for ready := false; !ready || c.leader == 0; {
		n, err := listener.Read(buf)
		if err != nil {
			c.kill()
			t.Fatalf("the container did not boot: %v\n%s", err, c.said)
		}
		for line := range strings.Lines(string(buf[:n])) {
			line = strings.TrimSpace(line)
			ready = ready || line == "READY=1"
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				c.leader = findLeader(pid, cgroup)
			}
		}
	}
}

// findLeader returns our number of a process that is PID 1 of the container and
// has another number where systemd-nspawn runs. 0: there is none.
func findLeader(there, cgroup string) int {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		status, _ := os.ReadFile(p + "/status")
		_, ids, _ := strings.Cut(string(status), "\nNSpid:")
		ids, _, _ = strings.Cut(ids, "\n")
		groups, _ := os.ReadFile(p + "/cgroup")
		if f := strings.Fields(ids); len(f) > 2 && f[len(f)-1] == "1" && f[len(f)-2] == there && strings.Contains(string(groups), cgroup) {
			pid, _ := strconv.Atoi(filepath.Base(p))
			return pid
		}
	}
	return 0
}

// makeRoot makes the container's root directory.
func (c *container) makeRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(c.dir, "root")
	for dir, mode := range map[string]fs.FileMode{
		"etc/systemd/system": 0o755, "etc/vmcred/vms": 0o755, "usr": 0o755, "var/lib/vmcred/images": 0o755, "root": 0o700,
		"dev": 0o755, "proc": 0o755, "sys": 0o755, "run": 0o755, "tmp": 0o777 | fs.ModeSticky, "opt": 0o755,
	} {
		path := filepath.Join(root, dir)
		if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	target, err := os.ReadFile("testdata/test.target")
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\nkvm:x:36:\n", "nsswitch.conf": "passwd: files\ngroup: files\n",
		"machine-id": "5c7c9e2f0a4b4d6e8f1a2b3c4d5e6f70\n", "hostname": "testhost\n", "systemd/system/test.target": string(target),
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, same := range []string{"ld.so.cache", "os-release"} {
		if b, err := os.ReadFile(c.system + "/etc/" + same); err == nil {
			if err := os.WriteFile(filepath.Join(root, "etc", same), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// path is a path of the container on this machine, /run and other mounts too.
func (c *container) path(inside string) string {
	return fmt.Sprintf("/proc/%d/root%s", c.leader, inside)
}

// command is a command as the container's root.
func (c *container) command(args ...string) *exec.Cmd {
	enter := []string{
		"--target=" + strconv.Itoa(c.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd=" + c.path("/"),
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "LC_ALL=C.UTF-8",
	}
	return exec.Command("nsenter", append(enter, args...)...)
}

// try runs shell commands as the container's root.
func (c *container) try(script string) (string, error) {
	cmd := c.command("bash", "-euo", "pipefail", "-c", script)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer context.AfterFunc(ctx, c.kill)()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// do is try for what must work.
func (c *container) do(t *testing.T, script string) string {
	t.Helper()
	out, err := c.try(script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.TrimSpace(script), err, out)
	}
	return out
}

// write puts a file into the container.
func (c *container) write(t *testing.T, path, text string) {
	t.Helper()
	path = c.path(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// kill ends every process of the container, and makes whoever waits for one fail.
func (c *container) kill() {
	pid := c.cmd.Process.Pid
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	first, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil || unix.Kill(first, unix.SIGKILL) != nil {
		_ = c.cmd.Process.Kill()
	}
	<-c.done
}

// end is kill, whatever state the container is in.
func (c *container) end(t *testing.T) {
	select {
	case <-c.done:
		if c.leader > 0 {
			t.Errorf("the container ended by itself:\n%s", c.said)
		}
	default:
		if c.cmd != nil && c.cmd.Process != nil {
			c.kill()
		}
	}
}

// traces are the container's mounts and processes that this machine has.
func (c *container) traces() []string {
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, c.dir) {
			found = append(found, "mount "+line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range processes {
		argv, _ := os.ReadFile(p + "/cmdline")
		root, _ := os.Readlink(p + "/root")
		if strings.Contains(string(argv), c.dir) && !strings.Contains(string(argv), "janitor.sh") || strings.Contains(root, c.dir) {
			found = append(found, fmt.Sprintf("process %s %q", p, argv))
		}
	}
	return found
}

// runState is what systemd-nspawn could leave for other programs to find.
func runState() map[string]bool {
	state := map[string]bool{}
	for _, pattern := range []string{"/run/systemd/nspawn*", "/run/systemd/nspawn/*", "/run/systemd/machines/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, p := range paths {
			state[p] = true
		}
	}
	return state
}

func newIn(before, after map[string]bool) []string {
	var found []string
	for p := range after {
		if !before[p] {
			found = append(found, p)
		}
	}
	return found
}
