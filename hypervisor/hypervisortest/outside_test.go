// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Controls: what the suite says it does not find, it would find.

func TestSearchFinds(t *testing.T) {
	items := three()
	v := []byte(items[1].value)
	for form, b := range map[string][]byte{
		"plain": v, "base64": []byte(base64.StdEncoding.EncodeToString(v)), "hex": []byte(hex.EncodeToString(v)),
	} {
		if f := search("here", append(append([]byte("before"), b...), "after"...), items); len(f) != 1 {
			t.Errorf("%s: %q", form, f)
		}
		if f := search("here", b[:len(b)-1], items); len(f) != 0 {
			t.Errorf("%s, cut: %q", form, f)
		}
	}
}

func TestSearchDescriptorsFinds(t *testing.T) {
	items := three()
	put := func(f *os.File) {
		t.Helper()
		if _, err := f.WriteString("x" + items[0].value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
	}
	before, faults := searchDescriptors(t, "/proc/self/fd", items)
	if len(faults) > 0 {
		t.Fatalf("before: %q", faults)
	}
	fd, err := unix.MemfdCreate("control", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memfd := os.NewFile(uintptr(fd), "control")
	put(memfd)
	file, err := os.Create(filepath.Join(t.TempDir(), "control"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file.Name()); err != nil { // an open file without a name, too
		t.Fatal(err)
	}
	put(file)
	if n, faults := searchDescriptors(t, "/proc/self/fd", items); len(faults) != 2 || n != before+1 {
		t.Errorf("%d memory files, before %d: %q", n, before, faults)
	}
	if err := memfd.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, faults := searchDescriptors(t, "/proc/self/fd", items); len(faults) != 1 {
		t.Errorf("after a truncation: %q", faults)
	}
}

func TestChildrenFindsOneAndItsZombie(t *testing.T) {
	if list := children(t); len(list) > 0 {
		t.Fatalf("before: %q", list)
	}
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if list := children(t); len(list) != 1 || !processExists(cmd.Process.Pid) {
		t.Errorf("running: %q", list)
	}
	_ = in.Close()
	// Ended and not waited for: WNOWAIT leaves the zombie.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if list := children(t); len(list) != 1 {
		t.Errorf("a zombie: %q", list)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if list := children(t); len(list) > 0 || processExists(cmd.Process.Pid) {
		t.Errorf("after: %q", list)
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		got, want string
		is        bool
	}{
		{"file=/dev/fd/12", "file=/dev/fd/<fd>", true},
		{"fd=3,id=4", "fd=<fd>,id=<fd>", true},
		{"plain", "plain", true},
		{"file=/dev/fd/", "file=/dev/fd/<fd>", false},
		{"file=/dev/fd/x", "file=/dev/fd/<fd>", false},
		{"file=/dev/fd/12x", "file=/dev/fd/<fd>", false},
		{"other", "plain", false},
		{"plain2", "plain", false},
	} {
		if matches(c.got, c.want) != c.is {
			t.Errorf("matches(%q, %q) is not %v", c.got, c.want, c.is)
		}
	}
}
