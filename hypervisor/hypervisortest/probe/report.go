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

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// The words the guest understands on its command line, separated by spaces.
const (
	WordWait   = "wait"   // power off once the power button is pressed
	WordReboot = "reboot" // reset the machine
	WordHang   = "hang"   // halt for ever, deaf to the power button
	WordPanic  = "panic"  // triple fault
	WordNoise  = "noise"  // first write each of the 256 byte values once
	WordAll    = "all"    // also digest the VMM's own fw_cfg files

	// WordReady makes the guest send MessageActive, what WordSay and WordFlood
	// want, and MessageReady to the vsock address in the OEM string that sets
	// vmm.notify_socket, each over a stream of its own. It waits until the host
	// closes one before it begins the next.
	WordReady = "ready"
	// WordHalfClose shuts down the guest's sending side after each message, as
	// systemd 256 and later do.
	WordHalfClose = "halfclose"
)

// What the guest sends with WordReady.
const (
	MessageActive = "X_SYSTEMD_UNIT_ACTIVE=probe.target"
	MessageReady  = "READY=1\nSTATUS=probe is up"
)

// WordCut makes WordReady see only the first n bytes of each OEM structure; an
// address on the edge is cut. systemd 252 to 256 does that with 4096.
func WordCut(n int) string { return fmt.Sprintf("cut=%d", n) }

// WordSay makes WordReady send this message, too, of any bytes, up to 64 KiB
// with each byte that is not plain visible ASCII taking three on the command
// line. It can be there more than once.
func WordSay(message string) string { return "say=" + escape(message) }

// WordFlood makes WordReady send n messages "STATUS=flood 1" and so on.
func WordFlood(n int) string { return fmt.Sprintf("flood=%d", n) }

// WordPatience is how many seconds one message may take, if not 10; after one
// that took longer the guest sends no more.
func WordPatience(seconds int) string { return fmt.Sprintf("patience=%d", seconds) }

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
	Ready    *Ready   // nil without WordReady
}

// Ready is what the guest did to tell the host that it is up.
type Ready struct {
	Found     bool // an OEM string that sets vmm.notify_socket
	Invalid   bool // and it is no vsock-stream:CID:PORT
	CID, Port uint32
	Messages  []Message // in the order they were sent
}

// Message is one message and how its connection ended.
type Message struct {
	Text string
	End  Ending
}

// Ending is how a connection of the guest's ended.
type Ending string

// The ends of a connection. A Linux guest does not tell a host that closed with
// bytes unread from one that read all, and so does not this one.
const (
	Closed   Ending = "closed"  // all was sent, and the host closed
	Cut      Ending = "cut"     // the host closed before all was sent
	Refused  Ending = "refused" // nobody listens
	TimedOut Ending = "timeout"
)

// SaidReady says whether READY=1 was sent and the host closed after it.
func (r *Report) SaidReady() bool {
	if r.Ready == nil {
		return false
	}
	return slices.Contains(r.Ready.Messages, Message{MessageReady, Closed})
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
