// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"slices"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

// TestNoFirmwareOfItsOwn: only a firmware's path can be booted.
func TestNoFirmwareOfItsOwn(t *testing.T) {
	about := func(firmware string) bool {
		s := full()
		s.Boot = vm.Boot{Firmware: firmware}
		found := New(Options{}).Check(s, hypervisor.Info{Version: "53.0.0"})
		return slices.ContainsFunc(found, func(p vm.Problem) bool { return p.Field == "boot.firmware" && p.Hint != "" })
	}
	if !about(vm.FirmwareBIOS) {
		t.Error("bios is not refused")
	}
	if about("/usr/bin/env") {
		t.Error("a path is refused")
	}
}
