// SPDX-License-Identifier: Apache-2.0

// Package probe is a guest of a few kilobytes that says on its serial console
// what reached it: every SMBIOS structure, every OEM string, every fw_cfg
// file, the initrd and the kernel command line, each with its SHA-256. It has
// no operating system, so a test measures in a fraction of a second, inside a
// real VM, whether a VMM delivered bit-exact.
//
// The guest is C for 32-bit protected mode without paging or SSE, in an ELF64
// file with a PVH entry note, which QEMU, cloud-hypervisor and Firecracker
// boot. Build compiles it; Parse reads its report. Words on the kernel's
// command line choose what it does after the report: see guest/main.c.
package probe

import "crypto/sha256"

// The words the guest understands on its command line, separated by spaces.
const (
	WordWait   = "wait"   // power off once the power button is pressed
	WordReboot = "reboot" // reset the machine
	WordHang   = "hang"   // halt for ever, deaf to the power button
	WordPanic  = "panic"  // triple fault
	WordNoise  = "noise"  // first write each of the 256 byte values once
	WordAll    = "all"    // also digest the VMM's own fw_cfg files
)

// Last is the line that ends every complete report.
const Last = "probe: end"

// Digest is the SHA-256 of what the guest found.
type Digest [sha256.Size]byte

// Report is what one boot of the probe guest found.
type Report struct {
	Platform string // "q35", "i440fx", "cloud-hypervisor" or "unknown"
	Cmdline  Memory
	Initrds  []Memory // the modules of the PVH start info
	SMBIOS   *SMBIOS  // nil: no entry point in the firmware's segment
	FwCfg    []File   // in the device's order
	HasFwCfg bool     // there is a fw_cfg device
}

// Memory is a range of the guest's memory.
type Memory struct {
	At     uint32
	Bytes  uint32
	SHA256 Digest
}

// SMBIOS is the table as a guest's kernel walks it.
type SMBIOS struct {
	Anchor     string // "_SM_" or "_SM3_"
	At, Table  uint32 // addresses of the entry point and of the table
	Bytes      uint32 // the table's length by its entry point; an upper bound for _SM3_
	Count      uint32 // structures by the entry point, 0 for _SM3_
	Structures []Structure
}

// Structure is one SMBIOS structure.
type Structure struct {
	Type    uint8
	Handle  uint16
	Bytes   uint32 // the whole of it, with its strings and both final NULs
	Count   uint8  // type 11: what its count byte says
	Found   uint32 // the strings that follow it
	Strings []String
}

// String is one string of a type 11 structure, its NUL left out.
type String struct {
	Index  uint32 // from 1
	Bytes  uint32
	SHA256 Digest
}

// File is one file of the fw_cfg device.
type File struct {
	Name     string
	Bytes    uint32
	Digested bool // SHA256 was computed: names below opt/, or with WordAll all
	SHA256   Digest
}

// OEM returns the type 11 structures in the table's order.
func (r *Report) OEM() []Structure {
	var out []Structure
	if r.SMBIOS == nil {
		return nil
	}
	for _, s := range r.SMBIOS.Structures {
		if s.Type == oemStrings {
			out = append(out, s)
		}
	}
	return out
}

// oemStrings is the SMBIOS structure type of OEM strings (DSP0134, 7.12).
const oemStrings = 11
