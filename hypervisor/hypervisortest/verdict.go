// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
)

// verdict is what the suite, by rules of its own, expects of a set.
type verdict int

const (
	either    verdict = iota // at the edge: both are right if what arrives is exact
	mustTake                 // well within every limit: refusing it would be a fault
	mustLeave                // a guest would lose something: taking it would be a fault
)

const (
	guestBytes = 1 << 20 // of one value and of all, import-creds.c
	guestFiles = 1024    // inodes of a tmpfs of that size, one of them its root
)

// judge returns what must become of a set and why.
func judge(items []item, systemd int, offers []delivery.Offer) (verdict, string) {
	names := map[string]bool{}
	total, pages, files, odd := 0, 0, 0, false
	for _, it := range items {
		if why := neverArrives(it); why != "" {
			return mustLeave, it.label() + " " + why
		}
		name := it.guest
		if it.kind == credential.OEMString {
			var is bool
			if name, is = credentialIn(it.value); !is {
				continue
			}
			odd = true // the driver may take it for what it is, or refuse it
		}
		if names[name] {
			return mustLeave, it.label() + " has another's name"
		}
		names[name] = true
		if it.kind == credential.OEMString {
			continue
		}
		total += len(it.value)
		pages += (len(it.value) + pageOfSysfs - 1) / pageOfSysfs
		files++
	}
	switch {
	case total > guestBytes:
		return mustLeave, fmt.Sprintf("%d bytes in all", total)
	case pages > guestBytes/pageOfSysfs:
		return mustLeave, fmt.Sprintf("%d pages in all", pages)
	case files >= guestFiles:
		return mustLeave, fmt.Sprintf("%d files", files)
	}
	if v, why := fits(items, systemd, offers); v == mustLeave || !odd {
		return v, why
	}
	return either, ""
}

// credentialIn returns the name of the credential that an OEM string sets.
func credentialIn(s string) (name string, is bool) {
	for _, prefix := range []string{binaryString, textString} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			name, _, _ = strings.Cut(rest, "=")
			return name, true
		}
	}
	return "", false
}

// neverArrives says why no guest gets this item as it is, or nothing.
func neverArrives(it item) string {
	if it.kind == credential.OEMString {
		switch {
		case it.value == "":
			return "is empty and ends its structure"
		case strings.Contains(it.value, "\x00"):
			return "holds a NUL, which ends it"
		}
		return ""
	}
	for _, name := range []string{it.guest, it.host} {
		if it.kind == credential.Static && name == it.host {
			continue
		}
		if name == "" || name == "." || name == ".." || len(name) > 255 {
			return "has no name that can be a file's"
		}
		for _, c := range []byte(name) {
			if c < ' ' || c > '~' || c == '/' || c == ':' {
				return "has a byte in its name that systemd does not take"
			}
		}
	}
	if len(it.value) > guestBytes {
		return "is longer than a guest takes"
	}
	return ""
}

// fits is generous: each string counts as base64 in a structure of its own, and
// half of a channel is enough to be sure.
func fits(items []item, systemd int, offers []delivery.Offer) (verdict, string) {
	oem, files := channels(offers)
	if hasOneStructure(oem, files) {
		return fitsOne(items, systemd, oem)
	}
	if oem == nil || oem.Structs > 0 || oem.Items > 0 {
		return either, ""
	}
	room := pageOfSysfs
	if systemd >= wholeStructures {
		room = oem.TotalMax / 2
	}
	used, inFiles := 0, 0
	for _, it := range items {
		least, most := it.structureBytes()
		asFile := files != nil && it.kind != credential.OEMString && len(fwCfgPrefix+it.guest) <= fwCfgKey
		switch {
		case most > 0 && most <= room:
			used += most
		case asFile:
			inFiles++
		case systemd < wholeStructures && (least == 0 || least > pageOfSysfs):
			return mustLeave, it.label() + " has no channel to this guest"
		default:
			return either, ""
		}
	}
	if used <= oem.TotalMax/2 && (files == nil || files.Items == 0 || inFiles <= files.Items/2) {
		return mustTake, "it is well within every limit"
	}
	return either, ""
}

func channels(offers []delivery.Offer) (oem, files *delivery.Offer) {
	for i := range offers {
		switch offers[i].Channel {
		case delivery.SMBIOS:
			oem = &offers[i]
		case delivery.FwCfg:
			files = &offers[i]
		}
	}
	return oem, files
}

// structureBytes returns the shortest and the longest structure that holds
// nothing but this item; 0 if no string can carry it.
func (it item) structureBytes() (least, most int) {
	for _, s := range it.strings() {
		n := len(s) + 7 // header, two NULs
		if least == 0 || n < least {
			least = n
		}
		most = max(most, n)
	}
	return least, most
}
