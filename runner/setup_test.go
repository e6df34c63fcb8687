// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/state"
	"github.com/vmcred/vmcred/vm"
)

// TestSetup: what is made for a VM is there before anything looks for it, through all
// boots, and is taken away once, while nobody else can start the VM.
func TestSetup(t *testing.T) {
	var did []string
	d := &scripted{exits: []hypervisor.Exit{{Reboot: true}, {Clean: true}}}
	d.booted = func(int, *delivery.Payload) { did = append(did, "boot") }
	f := setUp(t, d, nil)
	locked := func() {
		var busy *state.BusyError
		if _, err := state.Acquire(f.o.Root, "a"); !errors.As(err, &busy) {
			t.Errorf("another one can start it: %v", err)
		}
	}
	f.o.Setup = func() (func() error, error) {
		locked()
		did = append(did, "set up")
		return func() error { locked(); did = append(did, "undo"); return errors.New("it is stuck") }, nil
	}
	if _, err := Run(t.Context(), f.o); err != nil {
		t.Fatal(err)
	}
	if want := []string{"set up", "boot", "boot", "undo"}; !slices.Equal(did, want) {
		t.Errorf("%q, want %q", did, want)
	}
	if !strings.Contains(f.log.String(), "it is stuck") {
		t.Errorf("what is left is not said: %s", &f.log)
	}
}

func TestSetupFails(t *testing.T) {
	d := &scripted{}
	f := setUp(t, d, nil)
	f.o.Setup = func() (func() error, error) {
		return nil, refused(vm.Problem{Message: "no bridge", Hint: "make one"})
	}
	_, err := Run(t.Context(), f.o)
	if got := problemsOf(t, err); got != "no bridge\n" || d.boots != 0 {
		t.Errorf("%q, %d boots", got, d.boots)
	}
	claim, err := state.Acquire(f.o.Root, "a")
	if err != nil {
		t.Fatalf("the lock is still held: %v", err)
	}
	_ = claim.Close()
}
