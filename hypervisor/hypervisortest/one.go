// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"fmt"
	"unicode/utf8"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
)

const (
	structureStrings = 255 // the count is one byte (DSP0134, 7.12)
	structureEmpty   = 6   // header, count, final NUL
)

// fitsOne judges where everything must go into one structure. There is no choice
// of a place then, so what is not mustLeave is nearly always mustTake.
func fitsOne(items []item, systemd int, oem *delivery.Offer) (verdict, string) {
	if len(items) > structureStrings {
		return mustLeave, fmt.Sprintf("%d strings, and its count is one byte", len(items))
	}
	least, most := size{structure: structureEmpty}, size{structure: structureEmpty}
	sure := oem.Items == 0 || len(items) <= oem.Items
	for _, it := range items {
		strings := it.strings()
		if len(strings) == 0 {
			return mustLeave, it.label() + " has no string"
		}
		if oem.JSON && it.kind == credential.OEMString && !utf8.ValidString(it.value) {
			return mustLeave, it.label() + " cannot be said in JSON"
		}
		low, high := sizes(strings)
		least.add(low)
		most.add(high)
		sure = sure && (oem.Empty || it.value != "") && (oem.Raw || it.kind != credential.OEMString) &&
			(oem.NameMax == 0 || len(it.guest) <= oem.NameMax) && (oem.ItemMax == 0 || len(it.value) <= oem.ItemMax)
	}
	page := systemd < wholeStructures
	switch {
	case len(items) == 0:
		return mustTake, "there is nothing to carry"
	case page && least.structure > pageOfSysfs:
		return mustLeave, fmt.Sprintf("%d bytes of one structure, and systemd %d reads %d", least.structure, systemd, pageOfSysfs)
	case oem.TotalMax > 0 && (least.structure > oem.TotalMax || oem.JSON && least.json > oem.TotalMax):
		return mustLeave, fmt.Sprintf("%d bytes, %d in JSON, and there is room for %d", least.structure, least.json, oem.TotalMax)
	}
	sure = sure && (!page || most.structure <= pageOfSysfs) && (oem.StructMax == 0 || most.structure <= oem.StructMax)
	if sure && (oem.TotalMax == 0 || max(most.structure, most.json) <= oem.TotalMax/2) {
		return mustTake, "it is well within every limit"
	}
	return either, ""
}

// size is what strings take up in a structure, and as strings of a JSON array.
type size struct{ structure, json int }

func (s *size) add(more size) {
	s.structure += more.structure
	s.json += more.json
}

// sizes returns the least and the most that one of these strings takes.
func sizes(strings []string) (least, most size) {
	for i, s := range strings {
		short, long := escapedLen(s)
		n := len(s) + len("\x00")
		if i == 0 {
			least, most = size{n, short}, size{n, long}
			continue
		}
		least = size{min(least.structure, n), min(least.json, short)}
		most = size{max(most.structure, n), max(most.json, long)}
	}
	return least, most
}

// escapedLen is the length of a JSON string with its quotes, by the shortest
// escapes (RFC 8259, 7) and with each control character as \u00xx and a comma.
func escapedLen(s string) (short, long int) {
	short, long = 2+len(s), 3+len(s)
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			short, long = short+1, long+1
		case c == '\b' || c == '\f' || c == '\n' || c == '\r' || c == '\t':
			short, long = short+1, long+5
		case c < ' ':
			short, long = short+5, long+5
		}
	}
	return short, long
}
