// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"fmt"

	"github.com/vmcred/vmcred/credential"
)

// structOverhead is what a structure takes up without its strings.
var structOverhead = credential.Type11Len(nil)

// smbios packs strings into type 11 structures, first fit.
type smbios struct {
	o         Offer
	guest     Guest
	structs   []structure
	bytes     int
	items     int
	multiMax  int // bytes of a structure with several strings
	singleMax int // bytes of a structure with one
	// reserved is what READY's address takes up with its NUL, until it is
	// placed. It has a place in any case: in the last structure, or in one more.
	reserved     int
	reservedMore int // what it takes up beside its structure
}

type structure struct{ bytes, strings int }

func newSMBIOS(o Offer, g Guest, notify *credential.Meta) *smbios {
	s := &smbios{o: o, guest: g, multiMax: wholeStructMax, singleMax: wholeStructMax}
	if g.Systemd < WholeStructures {
		s.multiMax, s.singleMax = PageStruct, PageStruct
	}
	if o.StructMax > 0 {
		s.multiMax = min(s.multiMax, o.StructMax)
		if g.Systemd < WholeStructures {
			s.singleMax = s.multiMax
		}
	}
	if notify != nil && s.never(*notify) == nil {
		s.reserved = smbiosLen(*notify) + 1
		s.reservedMore = s.more(*notify)
	}
	return s
}

func (s *smbios) offer() *Offer { return &s.o }

func (s *smbios) limit() Limit {
	return Limit{
		Channel: s.o.Channel, Items: s.items, ItemsMax: s.o.Items,
		Bytes: s.bytes, BytesMax: s.o.TotalMax, Needs: s.o.Needs, Why: s.o.Why,
	}
}

// smbiosLen returns the length of an item's OEM string, without its NUL.
func smbiosLen(m credential.Meta) int {
	switch {
	case m.Kind == credential.OEMString:
		return m.Len
	case asText(m):
		return credential.TextStringLen(m.Guest, m.Len)
	}
	return credential.BinaryStringLen(m.Guest, m.Len)
}

func asText(m credential.Meta) bool {
	return m.Kind == credential.OEMString || m.Kind == credential.Static && m.Text
}

// more is what an item takes up of TotalMax beside its bytes in the structure: as
// a JSON string it has two quotes and a comma, but no NUL.
func (s *smbios) more(m credential.Meta) int {
	if !s.o.JSON {
		return 0
	}
	const quotes = 2
	switch {
	case m.Kind == credential.OEMString:
		return quotes + m.Escaped - m.Len
	case asText(m):
		return quotes + nameEscapes(m) + m.Escaped - m.Len
	}
	return quotes + nameEscapes(m)
}

func nameEscapes(m credential.Meta) int { return credential.JSONLen(m.Guest) - len(m.Guest) }

func (s *smbios) never(m credential.Meta) *reason {
	if s.o.JSON && m.Kind == credential.OEMString && m.Escaped < 0 {
		return &reason{"is not UTF-8, and this hypervisor is told its strings in JSON", "write it as UTF-8, or remove it"}
	}
	if m.Kind == credential.OEMString {
		if !s.o.Raw {
			return &reason{"carries no OEM strings here", oemHint}
		}
	} else if err := credential.CheckSMBIOSName(m.Guest); err != nil {
		return &reason{nameReason(err), "choose a guest name without \"=\" with \"as:\""}
	}
	if why := neverCommon(s.o, m); why != nil {
		return why
	}
	n := structOverhead + smbiosLen(m) + 1
	switch {
	case n > s.singleMax && s.guest.Systemd < WholeStructures:
		return &reason{
			fmt.Sprintf("takes a structure of %d bytes, and systemd %d reads %d bytes of one", n, s.guest.Systemd, s.singleMax),
			fmt.Sprintf("use a guest with systemd %d or newer and say so with \"guest: {systemd: %d}\"", WholeStructures, WholeStructures),
		}
	case n > s.singleMax:
		return &reason{fmt.Sprintf("takes a structure of %d bytes, and systemd %d reads %d bytes of one", n, s.guest.Systemd, s.singleMax), splitHint}
	case s.o.TotalMax > 0 && n+s.more(m) > s.o.TotalMax:
		return &reason{fmt.Sprintf("takes %d bytes and has room for %d%s", n+s.more(m), s.o.TotalMax, whose(s.o)), splitHint}
	}
	return nil
}

// place puts the string into the first structure with room, or into a new one.
// OEM strings stay in order: they look at the last structure only.
func (s *smbios) place(e *Entry) *reason {
	n := smbiosLen(e.Meta) + 1
	notify := isNotify(e.Meta)
	if notify {
		s.reserved, s.reservedMore = 0, 0
	}
	if s.o.Items > 0 && s.items+s.spare() >= s.o.Items {
		return &reason{fmt.Sprintf("%d of %d places are taken", s.items+s.spare(), s.o.Items), fewerHint}
	}
	first := 0
	if notify || e.Kind == credential.OEMString {
		first = max(len(s.structs)-1, 0)
	}
	at := first
	for at < len(s.structs) && !s.fits(at, n) {
		at++
	}
	grow := n + s.more(e.Meta)
	if at == len(s.structs) {
		grow += structOverhead
		if s.o.Structs > 0 && at >= s.o.Structs || !s.fits(at, n) {
			return &reason{fmt.Sprintf("%d of %d structures are full", len(s.structs), s.o.Structs), fewerHint}
		}
	}
	if s.o.TotalMax > 0 && s.bytes+grow+s.reservedBytes() > s.o.TotalMax {
		return &reason{
			fmt.Sprintf("%d bytes as encoded, and %d of %d are left%s", grow, s.o.TotalMax-s.bytes-s.reservedBytes(), s.o.TotalMax, whose(s.o)),
			fewerHint,
		}
	}
	if at == len(s.structs) {
		s.structs = append(s.structs, structure{bytes: structOverhead})
	}
	s.structs[at].bytes += n
	s.structs[at].strings++
	s.bytes += grow
	s.items++
	e.Struct, e.Encoded, e.Text = at, n, asText(e.Meta)
	return nil
}

func (s *smbios) spare() int {
	if s.reserved > 0 {
		return 1
	}
	return 0
}

// reservedBytes is what READY's address needs at worst: a structure of its own.
func (s *smbios) reservedBytes() int {
	if s.reserved == 0 {
		return 0
	}
	return structOverhead + s.reserved + s.reservedMore
}

// fits says whether structure at, which may be a new one, has room for n bytes.
func (s *smbios) fits(at, n int) bool {
	now := structure{bytes: structOverhead}
	if at < len(s.structs) {
		now = s.structs[at]
	}
	now.bytes += n
	now.strings++
	if at == s.o.Structs-1 { // the last there can be
		now.bytes += s.reserved
		now.strings += s.spare()
	}
	if now.strings == 1 {
		return now.bytes <= s.singleMax
	}
	return now.bytes <= s.multiMax && now.strings <= credential.Type11Strings
}

func whose(o Offer) string {
	if o.Why == "" {
		return ""
	}
	return ": " + o.Why
}
