// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/vm"
)

// holding runs a QEMU that has the disk until the test ends.
func holding(t *testing.T, disk, readonly string) {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs qemu-system-x86_64 (apt install qemu-system-x86)")
		}
		t.Skip("SKIPPED: needs qemu-system-x86_64 (apt install qemu-system-x86)")
	}
	c := exec.Command(qemu, "-nodefaults", "-display", "none", "-S", "-qmp", "stdio",
		"-blockdev", "driver=raw,node-name=d,read-only="+readonly+",file.driver=file,file.filename="+disk, "-device", "virtio-blk-pci,drive=d")
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
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	// It answers when its disks are open.
	if _, err := io.WriteString(in, `{"execute":"qmp_capabilities"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), `"return"`) {
			return
		}
	}
	t.Fatal("QEMU did not take the disk")
}

// locking is a lock as cloud-hypervisor has it.
func locking(t *testing.T, disk string, kind int16) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Len: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

// TestDiskInUse: a disk that another VMM has is found, whoever it is, and nobody is
// disturbed by the question.
func TestDiskInUse(t *testing.T) {
	const writes, reads = "has it open for writing", "must not change"
	for name, c := range map[string]struct {
		hold             func(t *testing.T, disk string)
		writable, rdonly string // what is said of ours
	}{
		"nobody":         {func(*testing.T, string) {}, "", ""},
		"QEMU writes":    {func(t *testing.T, d string) { holding(t, d, "off") }, writes, writes},
		"QEMU reads":     {func(t *testing.T, d string) { holding(t, d, "on") }, reads, ""},
		"exclusive lock": {func(t *testing.T, d string) { locking(t, d, unix.F_WRLCK) }, writes, writes},
		"shared lock":    {func(t *testing.T, d string) { locking(t, d, unix.F_RDLCK) }, reads, ""},
		"both read":      {func(t *testing.T, d string) { locking(t, d, unix.F_RDLCK); locking(t, d, unix.F_RDLCK) }, reads, ""},
	} {
		t.Run(name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk") // no comma in it, which QEMU would part
			write(t, disk, make([]byte, 1<<20), 0o600)
			c.hold(t, disk)
			for _, readonly := range []bool{false, true} {
				want := c.writable
				if readonly {
					want = c.rdonly
				}
				err := InUse(&vm.Spec{Disks: []vm.Disk{{Path: "/gone"}, {Path: disk, ReadOnly: readonly}}})
				if want == "" {
					if err != nil {
						t.Errorf("readonly %v: %v", readonly, err)
					}
					continue
				}
				var in *InUseError
				if !errors.As(err, &in) || in.Field != "disks[1].path" || in.Hint() == "" || !strings.Contains(err.Error(), disk+": another VM ") || !strings.Contains(err.Error(), want) {
					t.Errorf("readonly %v: %v, want %q", readonly, err, want)
				}
			}
		})
	}
}

// Only asking takes no lock: another VMM can have the disk right then.
func TestAskingTakesNoLock(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	write(t, disk, make([]byte, 1<<20), 0o600)
	fd, err := openDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, held := locked(fd, unix.F_WRLCK, 0, 0); held {
		t.Fatal("locked by nobody")
	}
	locking(t, disk, unix.F_WRLCK)
}

// Opening can do something in what is no disk.
func TestOnlyDisksAreOpened(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dev/null", fifo, dir} {
		if fd, err := openDisk(path); err == nil {
			_ = unix.Close(fd)
			t.Errorf("%s is opened", path)
		}
	}
}

func TestSameDiskTwice(t *testing.T) {
	dir := t.TempDir()
	disk, link := touch(t, dir, "disk"), filepath.Join(dir, "link")
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	s := spec(kernelFile(t, dir))
	s.Disks = []vm.Disk{{Path: disk, ReadOnly: true}, {Path: link, ReadOnly: true}}
	if got := faults(all(s)); got != "" {
		t.Errorf("two that are only read: %s", got)
	}
	s.Disks[1].ReadOnly = false
	if got := faults(all(s)); !strings.HasPrefix(got, "error: disks[1].path: disks[0] is the same file") {
		t.Errorf("got %s", got)
	}
}
