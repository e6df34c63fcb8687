// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmcred/vmcred/hypervisor"
	"github.com/vmcred/vmcred/vm"
)

// hanging is a boot sector that looks on PCI bus 0 for an Intel 6300ESB, sets its
// watchdog to the shortest time, two seconds until it bites, and hangs. Without one it
// looks for ever. Registers: Intel 6300ESB datasheet, 0x60 and 0x68.
func hanging() []byte {
	code := slices.Concat(
		[]byte{0x66, 0xbb, 0, 0, 0, 0x80}, //         mov ebx, 0x80000000
		// next:
		[]byte{0xba, 0xf8, 0x0c},                   // mov dx, 0xcf8
		[]byte{0x66, 0x89, 0xd8, 0x66, 0xef},       // mov eax, ebx; out dx, eax
		[]byte{0x80, 0xc2, 4, 0x66, 0xed},          // add dl, 4; in eax, dx
		[]byte{0x66, 0x3d, 0x86, 0x80, 0xab, 0x25}, // cmp eax, 0x25ab8086
		[]byte{0x74, 9},                            // je found
		[]byte{0x66, 0x81, 0xc3, 0, 8, 0, 0},       // add ebx, 0x800
		[]byte{0xeb, 0x100 - 30},                   // jmp next
		// found:
		[]byte{0x80, 0xcb, 0x60, 0x80, 0xea, 4}, //   or bl, 0x60; sub dl, 4
		[]byte{0x66, 0x89, 0xd8, 0x66, 0xef},    //   mov eax, ebx; out dx, eax
		[]byte{0x80, 0xc2, 4},                   //   add dl, 4
		[]byte{0xb8, 7, 0, 0xef},                //   mov ax, 7; out dx, ax: 1 MHz, no interrupt
		[]byte{0x80, 0xea, 4, 0x80, 0xcb, 8},    //   sub dl, 4; or bl, 8
		[]byte{0x66, 0x89, 0xd8, 0x66, 0xef},    //   mov eax, ebx; out dx, eax
		[]byte{0x80, 0xc2, 4, 0xb0, 2, 0xee},    //   add dl, 4; mov al, 2; out dx, al: enable
		[]byte{0xf4, 0xeb, 0x100 - 3},           //   hlt; jmp to it
	)
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

// TestWatchdog: a guest that hangs is reset by its watchdog, which ends this VM as a
// reboot does. It boots by the firmware that QEMU brings, from a disk.
func TestWatchdog(t *testing.T) {
	d, info, sp := installed(t)
	disk := filepath.Join(t.TempDir(), "disk")
	write(t, disk, hanging(), 0o600)
	sp.Boot = vm.Boot{Firmware: vm.FirmwareBIOS}
	sp.Disks = []vm.Disk{{Path: disk, Format: "raw"}}
	sp.Watchdog = true
	l, out := launchOf(t, d, info, sp, values(t, map[string]string{"A": "a"}))
	m, err := d.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	exit, kinds := end(t, m)
	if !exit.Reboot || exit.Clean || !slices.Contains(kinds, hypervisor.EventReboot) {
		t.Errorf("%+v, %v: %s", exit, kinds, out.log.String())
	}
}
