// SPDX-License-Identifier: Apache-2.0

package hypervisortest

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/delivery"
	"github.com/vmcred/vmcred/hypervisor/hypervisortest/probe"
	"github.com/vmcred/vmcred/secret"
)

// What a guest's systemd does, written down here a second time on purpose:
// systemd.system-credentials(7), src/core/import-creds.c, src/shared/smbios11.c.
const (
	credentialsOldest = 252
	wholeStructures   = 257
	pageOfSysfs       = 4096
	binaryString      = "io.systemd.credential.binary:"
	textString        = "io.systemd.credential:"
	fwCfgPrefix       = "opt/io.systemd.credentials/"
	fwCfgKey          = 55 // bytes of a key
	readyAddress      = "vmm.notify_socket"
)

// item is one thing to deliver, as the suite made it up. Its value is public.
type item struct {
	kind  credential.Kind
	host  string
	guest string
	value string
}

func (it item) addTo(set *credential.Set) error {
	switch it.kind {
	case credential.Static:
		return set.AddStatic(it.guest, it.value)
	case credential.OEMString:
		return set.AddOEMString(it.value)
	}
	v, err := secret.Make(len(it.value), func(b []byte) (int, error) { return copy(b, it.value), nil })
	if err != nil {
		return err
	}
	if err := set.AddSecret(it.host, it.guest, v); err != nil {
		v.Wipe()
		return err
	}
	return nil
}

// strings are the OEM strings by which the guest gets exactly this item.
func (it item) strings() []string {
	if it.kind == credential.OEMString {
		return []string{it.value}
	}
	if strings.Contains(it.guest, "=") {
		return nil // the name would end there
	}
	out := []string{binaryString + it.guest + "=" + base64.StdEncoding.EncodeToString([]byte(it.value))}
	if it.kind == credential.Static && !strings.Contains(it.value, "\x00") {
		out = append(out, textString+it.guest+"="+it.value)
	}
	return out
}

// label is the item in an error's text.
func (it item) label() string {
	if it.kind == credential.OEMString {
		return fmt.Sprintf("OEM string of %d bytes", len(it.value))
	}
	return fmt.Sprintf("%s %q of %d bytes", it.kind, it.guest, len(it.value))
}

// found is what of a report can be credentials, each taken away once found.
type found struct {
	digests []probe.Digest // OEM strings in the table's order
	taken   []bool
	files   map[string]probe.File
}

func newFound(r *probe.Report) *found {
	f := &found{files: map[string]probe.File{}}
	for _, s := range r.OEM() {
		for _, v := range s.Strings {
			f.digests = append(f.digests, v.SHA256)
		}
	}
	f.taken = make([]bool, len(f.digests))
	for _, v := range r.FwCfg {
		if strings.HasPrefix(v.Name, "opt/") {
			f.files[v.Name] = v
		}
	}
	return f
}

// takeString takes the first string with this content; -1 if there is none.
func (f *found) takeString(s string) int {
	d := probe.Digest(sha256.Sum256([]byte(s)))
	for i := range f.digests {
		if !f.taken[i] && f.digests[i] == d {
			f.taken[i] = true
			return i
		}
	}
	return -1
}

func (f *found) takeFile(it item) bool {
	key := fwCfgPrefix + it.guest
	file, ok := f.files[key]
	if !ok || it.kind == credential.OEMString || len(key) > fwCfgKey || !file.Digested ||
		int(file.Bytes) != len(it.value) || file.SHA256 != sha256.Sum256([]byte(it.value)) {
		return false
	}
	delete(f.files, key)
	return true
}

// compare lists what is wrong with a report: each item must be there exactly
// once and bit-exact, and nothing else.
func compare(items []item, systemd int, offers []delivery.Offer, r *probe.Report) []string {
	f := newFound(r)
	faults := structureFaults(r, systemd, structuresOf(offers))
	lastRaw := -1
	for _, it := range items {
		at := -1
		for _, s := range it.strings() {
			if at = f.takeString(s); at >= 0 {
				break
			}
		}
		switch {
		case at < 0 && !f.takeFile(it):
			faults = append(faults, it.label()+" is not in the guest as it was given")
		case at >= 0 && it.kind == credential.OEMString && at < lastRaw:
			faults = append(faults, it.label()+" is out of order")
		case at >= 0 && it.guest == readyAddress && at != len(f.digests)-1:
			faults = append(faults, fmt.Sprintf("%s is string %d of %d, not the last", it.label(), at+1, len(f.digests)))
		}
		if it.kind == credential.OEMString {
			lastRaw = max(lastRaw, at)
		}
	}
	if n := count(f.taken, false); n > 0 {
		faults = append(faults, fmt.Sprintf("%d OEM strings too many", n))
	}
	for name := range f.files {
		faults = append(faults, fmt.Sprintf("fw_cfg file %q too many, or changed", name))
	}
	slices.Sort(faults)
	return faults
}

// structuresOf is how many structures the driver can make, 0 for as many as it likes.
func structuresOf(offers []delivery.Offer) int {
	if oem, _ := channels(offers); oem != nil {
		return oem.Structs
	}
	return 0
}

// structureFaults checks the table itself: an old guest reads a page of each
// structure, a new one believes the count byte. Who can make several keeps each
// within a page, so that a guest older than it says loses little.
func structureFaults(r *probe.Report, systemd, most int) []string {
	var faults []string
	if n := len(r.OEM()); most > 0 && n > most {
		faults = append(faults, fmt.Sprintf("%d structures, and %d are on offer", n, most))
	}
	for _, s := range r.OEM() {
		bytes := uint32(6)
		for _, v := range s.Strings {
			bytes += v.Bytes + 1
		}
		where := fmt.Sprintf("structure %#04x ", s.Handle)
		if bytes != s.Bytes {
			faults = append(faults, where+fmt.Sprintf("has %d bytes and its strings make %d", s.Bytes, bytes))
		}
		if int(s.Count) != len(s.Strings) {
			faults = append(faults, where+fmt.Sprintf("counts %d strings and has %d", s.Count, len(s.Strings)))
		}
		if s.Bytes > pageOfSysfs && systemd < wholeStructures {
			faults = append(faults, where+fmt.Sprintf("has %d bytes, and systemd %d reads %d", s.Bytes, systemd, pageOfSysfs))
		}
		if s.Bytes > pageOfSysfs && len(s.Strings) != 1 && most != 1 {
			faults = append(faults, where+fmt.Sprintf("has %d bytes and %d strings", s.Bytes, len(s.Strings)))
		}
	}
	return faults
}

func count(list []bool, want bool) int {
	n := 0
	for _, v := range list {
		if v == want {
			n++
		}
	}
	return n
}
