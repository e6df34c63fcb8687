// SPDX-License-Identifier: Apache-2.0

// Package credential knows what a credential is: its names on the host and in
// the guest, the set of them one VM is to get, the sources their values come
// from, and how each is written down for a guest's systemd as an SMBIOS string
// or a fw_cfg item. It knows no VMM and no store.
package credential

import (
	"fmt"
	"strings"
)

// Limits of systemd's import, in src/shared/creds-util.h, src/basic/fd-util.h
// and src/shared/mount-util.c of its source, versions 252 to 257.
const (
	// MaxValue is the length of one value in bytes. The guest warns about a
	// longer one and skips it.
	MaxValue = 1 << 20
	// MaxTotal is the length of all values together in bytes.
	MaxTotal = 1 << 20
	// PageSize is what a value takes up in the guest's credentials directory:
	// whole pages of a tmpfs of MaxTotal bytes.
	PageSize = 4096
	// MaxPages is the room in that directory.
	MaxPages = MaxTotal / PageSize
	// MaxCount is the number of values that are not empty: each takes a page.
	MaxCount = MaxPages
	// MaxFiles is the number of all values, empty ones too: that tmpfs has 1024
	// inodes, and its root is one of them.
	MaxFiles = 1023
	// MaxName is the length of a name in bytes.
	MaxName = 255
)

// NotifySocket is the credential that tells a guest's systemd where to report
// that it is ready.
const NotifySocket = "vmm.notify_socket"

// Pages returns the pages that a value of n bytes takes up in the guest.
func Pages(n int) int { return (n + PageSize - 1) / PageSize }

// NameError is a name that systemd does not take for a credential, at all or by
// one channel.
type NameError struct {
	Name   string
	Reason string // "is empty", "holds a '/'", …
	By     string // the channel, "fw_cfg"; empty: systemd never takes it
}

// Error returns the name, quoted, and what is wrong with it.
func (e *NameError) Error() string {
	name := e.Name
	if len(name) > 64 {
		name = name[:61] + "..."
	}
	if e.By != "" {
		return fmt.Sprintf("%q cannot go by %s: it %s", name, e.By, e.Reason)
	}
	return fmt.Sprintf("%q is no credential name: it %s", name, e.Reason)
}

// Hint says what a name may be.
func (e *NameError) Hint() string {
	return `a name is 1 to 255 printable ASCII characters without "/" and ":"`
}

// TransferList is the credential that holds, for a unit that is not ours, what the broker
// hands to it beside: names, lengths and keyed digests. No VM's file may declare one of
// this name.
const TransferList = "vmcred.transfer-list"

// CheckName returns a *NameError if systemd would not take name for a
// credential's name: it must be a file name (1 to 255 bytes, no "/", not "."
// or "..") and a descriptor name (no control characters, nothing above ASCII,
// no ":"). See credential_name_valid() in systemd's src/shared/creds-util.c.
func CheckName(name string) error {
	switch {
	case name == "":
		return &NameError{Name: name, Reason: "is empty"}
	case name == "." || name == "..":
		return &NameError{Name: name, Reason: "is a directory"}
	case len(name) > MaxName:
		return &NameError{Name: name, Reason: fmt.Sprintf("has %d characters and %d is the most", len(name), MaxName)}
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '/' || c == ':':
			return &NameError{Name: name, Reason: fmt.Sprintf("holds a %q", c)}
		case c < ' ' || c == 127:
			return &NameError{Name: name, Reason: "holds a control character"}
		case c > 127:
			return &NameError{Name: name, Reason: "holds a character that is not ASCII"}
		}
	}
	return nil
}

// GuestName returns the name under which a guest gets the host's credential if
// nothing else is said: upper case, "_" for "-". host-api-key becomes
// HOST_API_KEY.
func GuestName(host string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r == '-':
			return '_'
		}
		return r
	}, host)
}
