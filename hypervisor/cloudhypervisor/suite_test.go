// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/cloudhypervisor/standin"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/internal/testkvm"
	"github.com/vmcred/vmcred/vm"
)

// ordinary is who the VMMs run as when the test is root.
const ordinary = 65531

// TestMain plays the stand-in when it is started as the VMM is.
func TestMain(m *testing.M) {
	if standin.IsCall(os.Args) {
		os.Exit(standin.Main(os.Args[1:], standin.Options{}))
	}
	os.Exit(m.Run())
}

// TestSuite is the suite that every driver passes, with the real program.
func TestSuite(t *testing.T) {
	needReal(t)
	f := factory()
	f.SlowGuest = true
	f.Driver = func(t *testing.T) hypervisor.Driver {
		return New(Options{CacheDir: t.TempDir()})
	}
	hypervisortest.Run(t, f)
}

// TestSuiteOnStandIn is the same on every machine, without a guest's own eyes.
func TestSuiteOnStandIn(t *testing.T) {
	kvmAsUdevHasIt(t)
	f := factory()
	f.Driver = func(t *testing.T) hypervisor.Driver {
		return New(Options{Path: vmm(t), CacheDir: t.TempDir()})
	}
	hypervisortest.Run(t, f)
}

// vmm is this test binary where every user can execute it, and nobody write.
func vmm(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vmcred-vmm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "cloud-hypervisor")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func factory() hypervisortest.Factory {
	f := hypervisortest.Factory{
		Spec:  func(s *vm.Spec) { s.Hypervisor = "cloud-hypervisor" },
		Vsock: func(*testing.T) {}, // it brings its own
	}
	if os.Geteuid() == 0 {
		f.Identity = &launch.Identity{UID: ordinary, GID: ordinary}
	}
	return f
}

// needReal skips where the real program or KVM is missing.
func needReal(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("cloud-hypervisor"); err != nil {
		t.Skip("SKIPPED: needs cloud-hypervisor on PATH; the stand-in's tests ran instead")
	}
	kvmAsUdevHasIt(t)
}

// kvmAsUdevHasIt opens the device to the VMM's user for the time of a test,
// where no udev runs.
func kvmAsUdevHasIt(t *testing.T) {
	t.Helper()
	testkvm.Open(t)
}
