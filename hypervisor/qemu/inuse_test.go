// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/vm"
)

// TestDiskOfAnotherVM: the second VM with a disk is not started, and asks for no
// value; the first goes on.
func TestDiskOfAnotherVM(t *testing.T) {
	d, info, sp := installed(t)
	disk := filepath.Join(t.TempDir(), "disk")
	write(t, disk, make([]byte, 1<<20), 0o600)
	sp.Disks = []vm.Disk{{Path: disk, Format: "raw"}}
	sp.Boot.Cmdline = probe.WordWait
	l, _ := launchOf(t, d, info, sp, values(t, nil))
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	second, _ := launchOf(t, d, info, sp, values(t, nil))
	second.Deliver = func(context.Context) (*delivery.Payload, error) {
		t.Error("it was to be given values")
		return nil, errors.New("none")
	}
	var in *hostcheck.InUseError
	if _, err := d.Start(t.Context(), second); !errors.As(err, &in) || hintOf(err) == "" {
		t.Errorf("the second: %v", err)
	}
	if err := m.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	if exit, _ := end(t, m); !exit.Clean {
		t.Errorf("the first: %+v", exit)
	}
}
