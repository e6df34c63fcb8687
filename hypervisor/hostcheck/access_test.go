// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// TestBootedFilesOfOthers: who can write a guest's kernel or initrd has its
// secrets. Without secrets a VM boots from whatever it boots from elsewhere.
func TestBootedFilesOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	s := spec(kernelFile(t, dir))
	s.Boot.Initrd = touch(t, dir, "initrd")
	s.Credentials = []vm.Credential{{Host: "a", Guest: "A"}}
	look := func(id *launch.Identity) string { return faults(Access(s, nil, id)) }
	if got := look(nil); got != "" {
		t.Fatalf("what nobody else can write: %s", got)
	}
	spoil := func(path string, mode os.FileMode, want string) {
		t.Helper()
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got := look(nil); !strings.Contains(got, want) || !strings.Contains(got, "[chmod go-w "+path+"]") {
			t.Errorf("%q is not in %q", want, got)
		}
		secrets := s.Credentials
		s.Credentials = nil
		if got := look(nil); got != "" {
			t.Errorf("without secrets: %s", got)
		}
		s.Credentials = secrets
		if err := os.Chmod(path, before.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	spoil(s.Boot.Kernel, 0o666, "error: boot.kernel: who changes it is given the VM's secrets: "+s.Boot.Kernel)
	spoil(s.Boot.Initrd, 0o664, "error: boot.initrd: ")
	spoil(filepath.Dir(s.Boot.Kernel), 0o777, "error: boot.kernel: ")
	direct := s.Boot
	s.Boot = vm.Boot{Firmware: touch(t, dir, "firmware")} // no kernel, and not looked at as one
	spoil(s.Boot.Firmware, 0o666, "error: boot.firmware: who changes it is given the VM's secrets: "+s.Boot.Firmware)
	s.Boot.Firmware = vm.FirmwareBIOS
	if got := look(nil); got != "" {
		t.Errorf("the VMM's own firmware: %s", got)
	}
	s.Boot = direct

	if os.Geteuid() != 0 {
		return
	}
	// Neither of root nor of the VM's own user, and then of that one.
	if err := os.Chown(s.Boot.Kernel, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if got := look(nil); !strings.Contains(got, "belongs to user 65534") {
		t.Errorf("someone else's: %q", got)
	}
	if got := look(&launch.Identity{UID: 65534, GID: 65534}); strings.Contains(got, "belongs to") {
		t.Errorf("the VM's own user's: %q", got)
	}
}
