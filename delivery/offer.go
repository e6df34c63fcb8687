// SPDX-License-Identifier: Apache-2.0

// Package delivery decides which credential reaches a guest by which channel,
// or why it cannot. A plan is a function of names and lengths alone: no value is
// read to make one. All or nothing: a set of which one credential does not fit
// has no plan.
package delivery

import (
	"fmt"

	"github.com/vmcred/vmcred/credential"
)

// Channel is a road from the host into a guest's systemd.
type Channel string

// The channels.
const (
	SMBIOS Channel = "smbios" // OEM strings in SMBIOS structures of type 11
	FwCfg  Channel = "fw_cfg" // QEMU's firmware configuration device
)

// What a guest's systemd does, by version.
const (
	// OldestSystemd imports credentials from SMBIOS; older ones do not.
	OldestSystemd = 252
	// WholeStructures is the version from which systemd reads an SMBIOS
	// structure to its end. Before, it reads PageStruct bytes of each: a sysfs
	// file gives one page per read (read_smbios11_field() in its
	// src/shared/smbios11.c; before 257 import_credentials_smbios()).
	WholeStructures = 257
	// PageStruct is that page. It counts the whole structure, its header and
	// the NULs at its end, although those two could be cut without loss.
	PageStruct = 4096
	// wholeStructMax is what newer versions read of one structure at most.
	wholeStructMax = 1 << 20
)

// Guest is what is known about the software in the VM.
type Guest struct {
	Systemd int // its version; 0 counts as OldestSystemd
}

// Offer is what one driver can carry for one VM on one machine. In all limits 0
// means none.
type Offer struct {
	Channel   Channel
	Items     int    // entries that this channel can carry
	ItemMax   int    // bytes of one value as given
	NameMax   int    // bytes of the guest name
	TotalMax  int    // bytes of everything on the channel, as encoded
	StructMax int    // SMBIOS: bytes of one structure with several strings; a guest from WholeStructures on may get a longer one that holds a single string
	Structs   int    // SMBIOS: number of structures
	Empty     bool   // carries an empty value
	Raw       bool   // carries strings that are no credentials
	JSON      bool   // SMBIOS: the strings travel in a JSON text, in quotes and with a comma, which TotalMax counts
	Needs     string // what the guest needs for it: "CONFIG_DMI_SYSFS"
	Why       string // whose limit TotalMax is, for messages
}

// Refusal is why a set has no plan.
type Refusal struct {
	Host    string `json:"host,omitempty"`  // the credential on the host, if it is about one
	Guest   string `json:"guest,omitempty"` // its name in the guest
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what would help
}

// Error returns the refusal without its hint.
func (r Refusal) Error() string {
	switch {
	case r.Host != "" && r.Guest != "":
		return fmt.Sprintf("%s (%s in the guest): %s", r.Host, r.Guest, r.Message)
	case r.Guest != "":
		return r.Guest + ": " + r.Message
	}
	return r.Message
}

// refuse is about one item.
func refuse(m credential.Meta, message, hint string) Refusal {
	return Refusal{Host: m.Host, Guest: m.Guest, Message: message, Hint: hint}
}
