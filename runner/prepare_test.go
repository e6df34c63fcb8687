// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/internal/launch"
	"github.com/vmcred/vmcred/secret"
	"github.com/vmcred/vmcred/vm"
)

// guarded is a driver that also knows what a user may open.
type guarded struct {
	scripted
	access []vm.Problem
}

func (d *guarded) CheckAccess(*vm.Spec, hypervisor.Info, *launch.Identity) []vm.Problem {
	return d.access
}

func TestWhatIsMissingIsSaidOnce(t *testing.T) {
	gone := vm.Problem{Field: "disks[0].path", Message: "/x: no such file or directory"}
	closed := vm.Problem{Field: "boot.kernel", Message: "/k: this user may not read it", Hint: "chmod"}
	shut := vm.Problem{Field: closed.Field, Message: "/k: permission denied"}
	d := &guarded{scripted: scripted{problems: []vm.Problem{gone, shut}}}
	d.access = []vm.Problem{{Field: gone.Field, Message: gone.Message, Hint: "chmod"}, closed}
	o := Options{Spec: &vm.Spec{}, Driver: d, Identity: &launch.Identity{UID: uint32(os.Getuid() + 1), GID: 1}}
	if diff := cmp.Diff(vm.Problems{gone, closed}, Problems(o, hypervisor.Info{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Who stops a VM before it runs has stopped it: nothing was refused, whatever
// did not work any more because of that.
func TestStoppedWhileReading(t *testing.T) {
	d := &scripted{}
	f := setUp(t, d, map[string]string{"host-a": "x"})
	ctx, cancel := context.WithCancel(t.Context())
	open := f.o.Open
	f.o.Open = func(a *secret.Arena) (credential.Source, error) {
		cancel()
		return open(a)
	}
	if out, err := Run(ctx, f.o); err != nil || out != Ended || d.boots != 0 {
		t.Errorf("%v %v, %d boots", out, err, d.boots)
	}
}
