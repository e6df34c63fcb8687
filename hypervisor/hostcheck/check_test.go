// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// spec is a small VM with the kernel given.
func spec(kernel string) *vm.Spec {
	return &vm.Spec{Name: "test-vm", Boot: vm.Boot{Kernel: kernel}, Console: vm.Console{Mode: vm.ConsoleStdout}}
}

func touch(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	write(t, path, []byte("x"), 0o644)
	return path
}

// kernelFile is what Access takes for a kernel. It boots nowhere.
func kernelFile(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "kernel")
	write(t, path, []byte("\x7fELF"), 0o644)
	return path
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// faults are all problems in one text, a line each, with their hints.
func faults(ps []vm.Problem) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%s: %s: %s [%s]\n", p.Severity, p.Field, p.Message, p.Hint)
	}
	return b.String()
}

// all is what a driver of every part would say.
func all(s *vm.Spec) []vm.Problem {
	c := New(s)
	c.Boot()
	c.Disks()
	c.Interfaces("some VMM")
	c.ConsoleFile()
	return c.Problems()
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	kernel := touch(t, dir, "kernel")
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	sock, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	open, err := os.Open(kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	number := fmt.Sprint(open.Fd())
	for name, tc := range map[string]struct {
		spoil func(*vm.Spec)
		want  string
	}{
		"nothing":       {func(*vm.Spec) {}, ""},
		"no kernel":     {func(s *vm.Spec) { s.Boot.Kernel = dir + "/a b" }, `error: boot.kernel: "` + dir + `/a b": no such file or directory`},
		"relative":      {func(s *vm.Spec) { s.Boot.Kernel = "kernel" }, `error: boot.kernel: "kernel" is no absolute path`},
		"initrd":        {func(s *vm.Spec) { s.Boot.Initrd = dir }, "error: boot.initrd: " + dir + " is a directory, not a regular file"},
		"kernel a fifo": {func(s *vm.Spec) { s.Boot.Kernel = fifo }, "is a named pipe, not a regular file"},
		"escape":        {func(s *vm.Spec) { s.Boot.Kernel = "/\x1b[31m" }, `error: boot.kernel: "/\x1b[31m": no such`},
		"disk":          {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: kernel}, {Path: dir + "/gone"}} }, "error: disks[1].path: " + dir + "/gone: no such file"},
		"disk null":     {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: "/dev/null"}} }, "is a character device, not a regular file or a block device"},
		"descriptor":    {func(s *vm.Spec) { s.Boot.Kernel = "/dev/fd/" + number }, "error: boot.kernel: /dev/fd/" + number + " is another file in each process"},
		"disk by fd":    {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: "/proc/self/fd/" + number}} }, "error: disks[0].path: /proc/self/fd/" + number + " is another file"},
		"format":        {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: kernel, Format: "vmdk"}} }, `error: disks[0].format: "vmdk"`},
		"serial":        {func(s *vm.Spec) { s.Disks = []vm.Disk{{Path: kernel, Serial: strings.Repeat("x", 21)}} }, "error: disks[0].serial: has 21 characters"},
		"bridge":        {func(s *vm.Spec) { s.Interfaces = []vm.Interface{{Type: "bridge", ID: "br0"}} }, `error: interfaces[0].type: "bridge" is not supported with some VMM yet [use "tap"]`},
		"no tap":        {func(s *vm.Spec) { s.Interfaces = []vm.Interface{{Type: "tap", ID: "vm-nowhere"}} }, "error: interfaces[0].id: there is no interface vm-nowhere on this host [ip tuntap add dev vm-nowhere"},
		"lo":            {func(s *vm.Spec) { s.Interfaces = []vm.Interface{{Type: "tap", ID: "lo"}} }, "error: interfaces[0].id: lo is an interface, but no tap"},
		"tap's name":    {func(s *vm.Spec) { s.Interfaces = []vm.Interface{{Type: "tap", ID: "../lo"}} }, `error: interfaces[0].id: "../lo" is no interface's name`},
		"console dir":   {func(s *vm.Spec) { s.Console = vm.Console{Mode: vm.ConsoleFile, Path: dir + "/gone/log"} }, "error: console: " + dir + "/gone: no such directory [mkdir it first]"},
		"console sock":  {func(s *vm.Spec) { s.Console = vm.Console{Mode: vm.ConsoleFile, Path: dir + "/sock"} }, "error: console: " + dir + "/sock is a socket, not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(kernel)
			tc.spoil(s)
			got := faults(all(s))
			if !strings.Contains(got, tc.want) || strings.Count(got, "\n") != min(1, len(tc.want)) {
				t.Errorf("got %s, want one: %s", got, tc.want)
			}
		})
	}
	c := New(&vm.Spec{File: "/etc/vm.yaml"})
	c.Warn("hypervisor", "old", "a hint")
	if p := c.Problems()[0]; p.Severity != vm.Warning || p.Pos.File != "/etc/vm.yaml" || p.Hint != "a hint" {
		t.Errorf("%+v", p)
	}
}

// TestAccess asks for a user who may open nothing, as root.
func TestAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: asking for another user needs root")
	}
	dir, err := os.MkdirTemp("", "vmcred-access-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := func(name string, mode os.FileMode, gid int) string {
		path := filepath.Join(dir, name)
		write(t, path, nil, mode)
		if err := os.Chown(path, 0, gid); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := spec(kernelFile(t, dir))
	s.Disks = []vm.Disk{
		{Path: file("theirs", 0o660, 65533)},
		{Path: file("ro", 0o644, 0), ReadOnly: true},
		{Path: file("rw", 0o644, 0)},
	}
	s.Boot.Initrd = file("initrd", 0o600, 0)
	id := &launch.Identity{User: "vmcred-test", UID: 65531, GID: 65532, Groups: []uint32{65533}}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := faults(Access(s, nil, id))
	for _, want := range []string{
		"error: boot.initrd: " + s.Boot.Initrd + ": vmcred-test may not read it",
		"error: disks[2].path: " + s.Disks[2].Path + ": vmcred-test may not write it",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Count(got, "\n") != 2 {
		t.Errorf("more than two:\n%s", got)
	}
	device := Device{Field: "qemu.accel", Path: file("device", 0o640, 65533), Hint: "join the group"}
	if got := faults(Access(s, []Device{device}, id)); !strings.HasSuffix(got, "error: qemu.accel: "+device.Path+": vmcred-test may not write it [join the group]\n") {
		t.Errorf("a device: %s", got)
	}
	if got := faults(Access(s, nil, nil)); got != "" {
		t.Errorf("root may: %s", got)
	}
	if now, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); now != dumpable {
		t.Errorf("this process's dumpable attribute became %d, it was %d: %v", now, dumpable, err)
	}
	// The other threads are still root's.
	if _, err := os.ReadFile(s.Boot.Initrd); err != nil {
		t.Error(err)
	}
}

// TestTap makes real taps and asks who may have them.
func TestTap(t *testing.T) {
	if os.Geteuid() != 0 || !Exists(Tun) {
		t.Skip("SKIPPED: making a tap needs root and " + Tun)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI=true, and there is no ip (apt install iproute2)")
		}
		t.Skip("SKIPPED: needs ip (apt install iproute2)")
	}
	add := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", append([]string{"tuntap", "add", "dev", name, "mode", "tap"}, args...)...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: cannot make a tap: %s", out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	}
	add("vmcred-q0", "user", "65531")
	add("vmcred-q1", "user", "65530")
	add("vmcred-q2", "group", "65533")
	add("vmcred-q3")
	add("vmcred-q4", "user", "65531", "multi_queue")
	kernel := touch(t, t.TempDir(), "kernel")
	s := spec(kernel)
	for i := range 4 {
		s.Interfaces = append(s.Interfaces, vm.Interface{Type: "tap", ID: fmt.Sprintf("vmcred-q%d", i)})
	}
	// The last one every user may open.
	if got := faults(all(s)); !strings.HasPrefix(got, "warning: interfaces[3].id: the tap vmcred-q3 is nobody's: ") || strings.Count(got, "\n") != 1 {
		t.Error(got)
	}
	testQueues(t)
	for _, tc := range []struct {
		id   launch.Identity
		want []bool
	}{
		{launch.Identity{UID: 65531, GID: 65531}, []bool{true, false, false, true}},
		{launch.Identity{UID: 65530, GID: 65533}, []bool{false, true, true, true}},
		{launch.Identity{UID: 65529, GID: 65529, Groups: []uint32{65533}}, []bool{false, false, true, true}},
	} {
		for i, nic := range s.Interfaces {
			if got := mayAttach(nic.ID, &tc.id); got != tc.want[i] {
				t.Errorf("%+v, %s: %v", tc.id, nic.ID, got)
			}
		}
	}
}

// testQueues: what the kernel would not attach to, and descriptors that are no tap.
func testQueues(t *testing.T) {
	t.Helper()
	tun, err := os.OpenFile(Tun, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	fd := int(tun.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Fatal(err)
	}
	check := func(nic vm.Interface, want string) {
		t.Helper()
		nic.Type = "tap"
		c := New(&vm.Spec{Interfaces: []vm.Interface{nic}})
		c.Interfaces("some VMM")
		if got := faults(c.Problems()); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", nic, got, want)
		}
	}
	check(vm.Interface{ID: "vmcred-q3", Pairs: 2}, "has one pair of queues, and the VM several")
	check(vm.Interface{ID: "vmcred-q4"}, "several pairs of queues, and the VM has one")
	check(vm.Interface{ID: "vmcred-q4", Pairs: 2}, "")
	check(vm.Interface{FDs: []int{fd}}, fmt.Sprintf("descriptor %d of this process is no tap", fd))
	check(vm.Interface{FDs: []int{1 << 20}}, "is no tap")
	req, err := unix.NewIfreq("vmcred-q3")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	check(vm.Interface{FDs: []int{fd}}, "")
	check(vm.Interface{FDs: []int{fd}, Pairs: 2}, "has 1 descriptors for 2 pairs")
}

func TestMemoryOfTheHost(t *testing.T) {
	for memory, want := range map[int64]bool{64 << 20: false, 1 << 60: true} {
		c := New(&vm.Spec{Memory: memory})
		c.Memory()
		if got := len(c.Problems()) > 0; got != want {
			t.Errorf("%d bytes: %v", memory, c.Problems())
		}
	}
}
