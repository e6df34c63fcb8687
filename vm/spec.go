// SPDX-License-Identifier: Apache-2.0

// Package vm holds the types of one virtual machine's specification. It knows
// neither how a specification was written nor how it is run.
package vm

import "time"

// Spec is one VM, complete: defaults are filled in and it has been validated.
type Spec struct {
	Name            string // 1 to 23 characters of a-z, 0-9 and "-"
	Hypervisor      string // "qemu"
	CPUs            int    // at least 1
	MaxCPUs         int    // 0: CPUs, none to be added later
	Memory          int64  // bytes
	Boot            Boot
	Console         Console
	Guest           Guest
	Notify          Notify
	Disks           []Disk
	Interfaces      []Interface
	Shares          []Share
	Vsock           *Vsock   // nil: no vsock device
	Devices         []string // PCI devices of the host, by their directories below /sys/bus/pci/devices
	Watchdog        bool     // a watchdog that resets a guest that hangs
	Autostart       bool
	Unit            string        // the host unit that runs this VM
	StartTimeout    time.Duration // from the guest's start to its READY=1, with NotifyGuest
	StopTimeout     time.Duration // from the power button to quitting the VMM
	QEMU            QEMU
	CloudHypervisor CloudHypervisor
	Credentials     []Credential // secret, sorted by Host
	Static          []Static     // not secret, sorted by Name
	OEMStrings      []string     // SMBIOS strings that are no credentials, in order
	File            string       // the file it was read from, for messages
}

// Boot is a direct kernel boot, or a firmware that finds a boot loader on a disk.
type Boot struct {
	Kernel   string // a bzImage or an ELF file with a PVH note; empty with a firmware
	Initrd   string // empty: none
	Cmdline  string
	Firmware string // a firmware's image, or FirmwareBIOS; empty with a kernel
}

// FirmwareBIOS is the firmware that the VMM brings with it.
const FirmwareBIOS = "bios"

// ConsoleMode says where the guest's serial console goes.
type ConsoleMode string

// The console modes of a VM's file.
const (
	ConsoleStdout ConsoleMode = "stdout"
	ConsoleOff    ConsoleMode = "off"
	ConsoleSocket ConsoleMode = "socket"
	ConsoleFile   ConsoleMode = "file"
)

// Console is the guest's serial console.
type Console struct {
	Mode ConsoleMode
	Path string // the file's path, for ConsoleFile only
}

// Guest is what is known about the software inside the VM.
type Guest struct {
	Systemd int      // the guest's systemd version; 252 if the file does not say
	Units   []string // directories or files of the guest's units; empty: names are not checked
}

// Notify says when a VM counts as ready.
type Notify string

// The ready signals of a VM's file.
const (
	NotifyBoot  Notify = "boot"  // when the VMM runs the guest
	NotifyGuest Notify = "guest" // when the guest's systemd says so
)

// Disk is one block device.
type Disk struct {
	Path     string
	Format   string // "raw" or "qcow2"; by a foreign command line "vhd", "vhdx" or "" too, which is for the VMM to find out
	ReadOnly bool
	Serial   string // at most 20 characters, as virtio-blk has it
	Direct   bool   // past the host's page cache
	Queues   int    // 0: the VMM's choice
}

// Share is one directory shared with the guest.
type Share struct {
	Tag      string
	Source   string
	Proto    string // "virtiofs"
	ReadOnly bool
	User     string // the user whose rights its virtiofsd has; empty: the default
	// Socket is that of a virtiofsd that runs already; empty: the runner starts one.
	Socket string
}

// Vsock is the guest's vsock device.
type Vsock struct {
	CID    uint32 // 3 or more
	Socket string // the socket's path on the host; empty: in the VM's runtime directory
}

// QEMU is what only QEMU has.
type QEMU struct {
	Machine string   // "q35"
	Accel   string   // "auto", "kvm" or "tcg"
	Extra   []string // arguments as they are, after all others
}

// CloudHypervisor is what only cloud-hypervisor has.
type CloudHypervisor struct {
	// Extra is a JSON object that is merged into the VM's configuration, as
	// RFC 7396 has it; empty: nothing.
	Extra []byte
}

// Credential is one secret the VM is to receive.
type Credential struct {
	Host       string // its name on the host, as LoadCredential= has it
	Guest      string // its name in the guest's @system
	Source     Source
	AllowEmpty bool // an empty value is delivered instead of refused
	Pos        Pos
}

// SourceKind says where a credential's value is read at every start.
type SourceKind string

// The sources of a VM's file.
const (
	SourceUnit      SourceKind = "unit"      // the unit's own LoadCredential=, or --credentials
	SourceFile      SourceKind = "file"      // a file on the host
	SourceVar       SourceKind = "var"       // a generator's file
	SourceEncrypted SourceKind = "encrypted" // systemd-creds
	SourceSOPS      SourceKind = "sops"      // a SOPS file and a key in it
)

// Source is where one credential comes from.
type Source struct {
	Kind SourceKind
	Path string // the file, or the generator's file for SourceVar; empty for SourceUnit
	Key  string // the key in a SOPS file
}

// Static is one credential that is not secret and stands in the VM's file.
type Static struct {
	Name  string // its name in the guest, as written
	Value string
	Pos   Pos
}

// Pos is a place in a file. Line and Column count from 1; 0 means unknown.
type Pos struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}
