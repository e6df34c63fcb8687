// SPDX-License-Identifier: Apache-2.0

package testrun

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmcred/vmcred/internal/testkvm"
	"github.com/vmcred/vmcred/leak"
)

// kind is a hypervisor as these tests start it.
type kind struct {
	name    string // in a VM's file
	program string // the name of its executable
	copied  string // what each host gets a copy of, on its PATH; empty: nothing
	real    bool   // not a stand-in
	systemd int    // the guest's
	config  string // what else a VM's file says
	large   int    // bytes of the largest of a few values, before base64
	files   bool   // values travel in memory files, and large ones by fw_cfg
}

// qemu is there on every machine that tests.
func qemu() kind {
	return kind{
		name: "qemu", program: "qemu-system-x86_64", real: true, systemd: 252,
		config: "qemu: {accel: tcg}\n", large: 6000, files: true,
	}
}

// cloudHypervisor is the real program or its stand-in. All of its strings are in
// one structure, of which a guest before systemd 257 reads 4096 bytes.
func cloudHypervisor(path string, real bool) kind {
	return kind{name: "cloud-hypervisor", program: "cloud-hypervisor", copied: path, real: real, systemd: 257, large: 1500}
}

// onEach runs a test on every hypervisor: QEMU, and cloud-hypervisor or, on a
// machine without it, what plays it.
func onEach(t *testing.T, f func(t *testing.T, k kind)) {
	t.Helper()
	t.Run("qemu", func(t *testing.T) { f(t, qemu()) })
	onCloudHypervisor(t, f)
}

func onCloudHypervisor(t *testing.T, f func(t *testing.T, k kind)) {
	t.Helper()
	ran := false
	t.Run("cloud-hypervisor", func(t *testing.T) {
		k := realCloudHypervisor(t)
		ran = true
		f(t, k)
	})
	if ran {
		return
	}
	t.Run("stand-in", func(t *testing.T) {
		testkvm.Open(t) // the driver asks for the device all the same
		f(t, cloudHypervisor("/proc/self/exe", false))
	})
}

// realCloudHypervisor skips the test where the real program is missing.
func realCloudHypervisor(t *testing.T) kind {
	t.Helper()
	path, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		t.Skip("SKIPPED, nothing was shown of the real program: needs cloud-hypervisor on PATH")
	}
	testkvm.Open(t)
	return cloudHypervisor(path, true)
}

// each returns every hypervisor for a test that runs them at once, and what it
// cannot show.
func each(t *testing.T) []kind {
	t.Helper()
	all := []kind{qemu()}
	if err := testkvm.Works(); err != nil {
		t.Logf("SKIPPED, nothing was shown of cloud-hypervisor: needs KVM: %v", err)
		return all
	}
	testkvm.Open(t)
	path, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		t.Log("SKIPPED, nothing was shown of the real cloud-hypervisor, but of its stand-in: it is not on PATH")
		return append(all, cloudHypervisor("/proc/self/exe", false))
	}
	return append(all, cloudHypervisor(path, true))
}

// few is three values: two short ones, and one that is large as the hypervisor has it.
func (k kind) few() []credentialFile {
	return []credentialFile{{"host-api-key", text(32)}, {"host-jwt-secret", text(64)}, {"host-license", text(k.large)}}
}

// many is n values, where the hypervisor has room every twentieth a large one.
func (k kind) many(n int) []credentialFile {
	var all []credentialFile
	for i := range n {
		size := 32
		if k.files && i%20 == 0 {
			size = 4500
		}
		all = append(all, credentialFile{fmt.Sprintf("host-c%03d", i), text(size)})
	}
	return all
}

// channels are those that a few or many values take.
func (k kind) channels() []string {
	if k.files {
		return []string{"smbios", "fw_cfg"}
	}
	return []string{"smbios"}
}

// payload is where the values are meant to go: QEMU reads them from memory files,
// cloud-hypervisor from the connection that the program has to it. What is found
// there is seen as memory that cannot be read: the values' own pages.
func (k kind) payload() []leak.Meant {
	if k.files {
		return []leak.Meant{leak.Memfds("a structure for the hypervisor", "smbios"), leak.Memfds("an item for the hypervisor", "fw_cfg")}
	}
	return []leak.Meant{{Name: "the request to the hypervisor", Is: func(p leak.Place) bool {
		return p.Kind == leak.Write && p.Target == leak.ToSocket && p.Syscall == "writev" &&
			strings.HasPrefix(p.Path, "UNIX-STREAM:") && filepath.Base(p.Exe) == "vmcred"
	}}}
}

// copyOf copies an executable where every user may run it, once.
var copyOf = func() func(from string) (string, error) {
	var mu sync.Mutex // guards the map
	copies := map[string]string{}
	return func(from string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if to := copies[from]; to != "" {
			return to, nil
		}
		dir, err := workDir()
		if err != nil {
			return "", err
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		to := filepath.Join(dir, fmt.Sprintf("hypervisor-%d", len(copies)))
		copies[from] = to
		return to, os.WriteFile(to, b, 0o755)
	}
}()

// install gives the host its own copy of the hypervisor, if that is to be one.
// Nothing else on cloud-hypervisor's command line says whose it is.
func (h *host) install(t *testing.T) {
	t.Helper()
	if h.copied == "" {
		needCommands(t, h.program)
		return
	}
	from, err := copyOf(h.copied)
	if err != nil {
		t.Fatal(err)
	}
	h.mkdir(t, h.bin())
	if err := os.Chmod(h.bin(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(from, filepath.Join(h.bin(), h.program)); err != nil {
		t.Fatal(err)
	}
}

// bin is the directory that is first on this host's PATH.
func (h *host) bin() string { return filepath.Join(h.dir, "bin") }

// vmm returns the hypervisor's process, 0 if there is none.
func (h *host) vmm() int {
	text := "guest=" + h.name + "\x00"
	if h.copied != "" {
		text = filepath.Join(h.bin(), h.program) + "\x00--api-socket\x00"
	}
	for _, pid := range of(text) {
		return pid
	}
	return 0
}
