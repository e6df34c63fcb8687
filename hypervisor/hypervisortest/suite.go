// SPDX-License-Identifier: Apache-2.0

// Package hypervisortest is the one suite that every driver passes with one
// call. It starts real VMs with a probe guest as their kernel, which reports
// what reached it, and compares that with what was given, encoded a second
// time by a model of its own that shares no code with the encoders under test.
//
// Three environment variables choose what the random part does:
//
//	VMCRED_SETS=N  that many sets (1000; 50 with -short)
//	VMCRED_SEED=N  the seed of a run that failed, which it printed
//	VMCRED_SET=N   only that set of the run
package hypervisortest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/vm"
)

// Factory is what the suite needs to know of a driver.
type Factory struct {
	// Driver returns the driver under test. It may skip the test if its VMM is
	// not on this machine.
	Driver func(t *testing.T) hypervisor.Driver
	// Spec completes the specification of the suite's VM, which has a name, one
	// CPU, 128 MiB, the probe guest as kernel and its console on Launch.Console.
	Spec func(*vm.Spec)
	// WithoutValues returns an argument vector of Driver.Command without the
	// options that carry credentials; nil: no argument carries any.
	WithoutValues func(argv []string) []string
	// SlowGuest says that the probe guest computes slowly under this VMM, as
	// where KVM emulates each instruction: the random sets are of small values.
	SlowGuest bool
	// Vsock says that the driver has vsock; nil: it has none. It may skip the test
	// if this host lacks something for it.
	Vsock func(t *testing.T)
	// Identity is the user the VMMs run as; nil: the test's own.
	Identity *launch.Identity
}

// patience ends a test that would hang. No outcome depends on it.
const patience = 2 * time.Minute

// suite is one run of all tests over one driver.
type suite struct {
	Factory
	driver hypervisor.Driver
	info   hypervisor.Info
	kernel string
}

// Run runs the whole suite. Nothing else of the test's process may run beside
// it: it counts processes, descriptors and goroutines.
func Run(t *testing.T, f Factory) {
	s := newSuite(t, f)
	baseline(t, s)
	goroutines := goleak.IgnoreCurrent()
	before := descriptors(t)

	t.Run("events", s.testEvents)
	t.Run("reboot", s.testReboot)
	t.Run("triple fault", s.testTripleFault)
	t.Run("power button", s.testShutdown)
	t.Run("quit", s.testQuit)
	t.Run("kill", s.testKill)
	t.Run("console", s.testConsole)
	t.Run("a console that nobody reads", s.testBadReader)
	t.Run("a VMM that does not start", s.testBadVMM)
	t.Run("values that cannot be delivered", s.testDeliverFails)
	t.Run("cancelled", s.testCancelled)
	t.Run("nothing in argv, environment or descriptors", s.testNoValueOutside)
	t.Run("argv", s.testCommand)
	t.Run("without credentials", s.testWithoutCredentials)
	if f.Vsock != nil {
		t.Run("vsock", s.testVsock)
	}
	t.Run("every limit at its byte", s.testEdges)
	t.Run("random sets", s.testRandom)

	noChildren(t)
	if after := descriptors(t); len(after) > len(before) {
		t.Errorf("%d descriptors are open, before the suite %d: %q", len(after), len(before), after)
	}
	goleak.VerifyNone(t, goroutines)
}

func newSuite(t *testing.T, f Factory) *suite {
	t.Helper()
	s := &suite{Factory: f, driver: f.Driver(t)}
	info, err := s.driver.Probe(t.Context())
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	s.info = info
	t.Logf("%s %s, %s: %s", info.Path, info.Version, info.Accel, info.Why)
	// The VMM's user may not read the cache of the test's.
	s.kernel = filepath.Join(publicDir(t), "probe.elf")
	b, err := os.ReadFile(probe.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.kernel, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if ps := vm.Problems(s.driver.Check(s.spec(""), s.info)).Fatal(); len(ps) > 0 {
		t.Fatalf("Check: %v", ps)
	}
	return s
}

// baseline runs one VM, so that what the runtime opens once is open.
func baseline(t *testing.T, s *suite) {
	t.Helper()
	s.boot(t, nil, "").finish(t)
}

// spec is the suite's VM with these words on the guest's command line.
func (s *suite) spec(words string) *vm.Spec {
	spec := &vm.Spec{
		Name: "suite", CPUs: 1, Memory: 128 << 20,
		Boot:    vm.Boot{Kernel: s.kernel, Cmdline: words},
		Console: vm.Console{Mode: vm.ConsoleStdout},
		Guest:   vm.Guest{Systemd: 252},
		Notify:  vm.NotifyBoot,
		Unit:    "vmcred@suite.service",
	}
	if s.Spec != nil {
		s.Spec(spec)
	}
	return spec
}

// offers are those for the suite's VM.
func (s *suite) offers() []delivery.Offer { return s.driver.Offers(s.spec(""), s.info) }

// publicDir is a directory that another user may read; t.TempDir is not always.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmcred-suite-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
