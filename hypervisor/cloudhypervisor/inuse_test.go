// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"context"
	"errors"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
)

// TestDiskOfAnotherVM: the real program's locks are understood. A second VM with its
// disk is not started, and asks for no value; what both only read is no reason.
func TestDiskOfAnotherVM(t *testing.T) {
	needReal(t)
	d := New(Options{})
	spec := withDevices(t)
	spec.Interfaces = nil
	first, _ := run(t, d, spec)
	second := *spec
	l := launchOf(t, d, &second)
	l.Deliver = func(context.Context) (*delivery.Payload, error) {
		t.Error("it was to be given values")
		return nil, errors.New("none")
	}
	var in *hostcheck.InUseError
	if _, err := d.Start(t.Context(), l); !errors.As(err, &in) || in.Field != "disks[0].path" {
		t.Errorf("a disk that the first can write: %v", err)
	}
	second.Disks = spec.Disks[1:]
	run(t, d, &second)
	if first.State() != nil {
		t.Error("the first VM ended")
	}
}
