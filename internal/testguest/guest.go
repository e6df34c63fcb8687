// SPDX-License-Identifier: Apache-2.0

// Package testguest is a strict model of a guest: what a Linux kernel shows of
// its SMBIOS table and its fw_cfg items, and which credentials systemd makes of
// that. It shares no code with what it is used to test. It follows
// drivers/firmware/dmi-sysfs.c and qemu_fw_cfg.c of Linux, and
// src/core/import-creds.c of systemd 252 to 257.
package testguest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	mebibyte = 1 << 20
	page     = 4096
	inodes   = 1024 // of the tmpfs, one is its root
)

// Guest boots once for each call of Boot.
type Guest struct {
	Systemd int
}

// Booted is what systemd has after it imported its credentials.
type Booted struct {
	Credentials map[string][]byte
	Strings     []string // every OEM string as the kernel shows it, in order
	Complaints  []string // everything that was dropped, cut or skipped, as no log would tell
}

type importer struct {
	Booted
	sum, pages, files int
}

// Boot hands the guest its SMBIOS structures, one after the other as in a table,
// and its fw_cfg items by key.
func (g Guest) Boot(structures [][]byte, fwCfg map[string][]byte) Booted {
	im := &importer{Booted: Booted{Credentials: map[string][]byte{}}, files: 1}
	im.fwCfg(fwCfg)
	table := append(bytes.Join(structures, nil), 127, 4, 0xff, 0xfe, 0, 0) // end of table
	for _, raw := range im.walk(table) {
		if raw[0] == 11 && !im.structure(g.readRaw(raw)) {
			break
		}
	}
	return im.Booted
}

func (im *importer) complain(format string, a ...any) {
	im.Complaints = append(im.Complaints, fmt.Sprintf(format, a...))
}

// walk cuts the table into structures as dmi_decode_table() and
// dmi_entry_length() do.
func (im *importer) walk(table []byte) [][]byte {
	var out [][]byte
	handles := map[uint16]bool{}
	for p := 0; p+4 <= len(table); {
		end := p + int(table[p+1])
		if end < p+4 {
			im.complain("structure at %d is shorter than a header", p)
			return out
		}
		for end+1 < len(table) && (table[end] != 0 || table[end+1] != 0) {
			end++
		}
		if end+2 > len(table) {
			im.complain("structure at %d runs over the end of the table", p)
			return out
		}
		raw := table[p : end+2]
		if h := uint16(raw[2]) | uint16(raw[3])<<8; handles[h] {
			im.complain("handle %#x twice", h)
		} else {
			handles[h] = true
		}
		out = append(out, raw)
		if raw[0] == 127 {
			if end+2 != len(table) {
				im.complain("bytes after the end of the table")
			}
			return out
		}
		p = end + 2
	}
	im.complain("the table has no end")
	return out
}

// readRaw is what systemd gets of /sys/firmware/dmi/entries/11-N/raw.
func (g Guest) readRaw(raw []byte) []byte {
	if g.Systemd < 257 {
		return raw[:min(len(raw), page)]
	}
	if len(raw) > 8+mebibyte {
		return nil // E2BIG
	}
	return raw
}

// structure is one turn of import_credentials_smbios(); false ends the import.
func (im *importer) structure(raw []byte) bool {
	if len(raw) < 5 || raw[1] != 5 {
		im.complain("bad header")
		return false
	}
	strs, count := raw[5:], int(raw[4])
	seen := 0
	for len(strs) > 0 {
		s, rest, terminated := bytes.Cut(strs, []byte{0})
		strs = rest
		if len(s) == 0 {
			continue
		}
		if !terminated {
			im.complain("string %d is cut after %d bytes", seen, len(s))
		}
		seen++
		im.Strings = append(im.Strings, string(s))
		im.oemString(s)
	}
	if seen != count {
		im.complain("%d strings, the header says %d", seen, count)
	}
	return true
}

func (im *importer) oemString(s []byte) {
	rest, ok := bytes.CutPrefix(s, []byte("io.systemd.credential:"))
	binary := false
	if !ok {
		if rest, binary = bytes.CutPrefix(s, []byte("io.systemd.credential.binary:")); !binary {
			return
		}
	}
	eq := bytes.IndexByte(rest, '=')
	if eq < 0 {
		im.complain("no '='")
		return
	}
	name, value := string(rest[:eq]), bytes.Clone(rest[eq+1:])
	if binary {
		if value, ok = unbase64(value); !ok {
			im.complain("%s: bad base64", name)
			return
		}
	}
	im.add(name, value)
}

// fwCfg is import_credentials_qemu(): it sees by_name/opt/io.systemd.credentials,
// sorted, without names that begin with a dot.
func (im *importer) fwCfg(items map[string][]byte) {
	for _, key := range slices.Sorted(maps.Keys(items)) {
		if len(key) > 55 {
			im.complain("%s: no such key fits", key)
			continue
		}
		name, ok := strings.CutPrefix(key, "opt/io.systemd.credentials/")
		if !ok || name == "" || strings.HasPrefix(name, ".") || strings.Contains(name, "/") {
			im.complain("%s: not listed", key)
			continue
		}
		im.add(name, bytes.Clone(items[key]))
	}
}

func (im *importer) add(name string, value []byte) {
	pages := (len(value) + page - 1) / page
	_, taken := im.Credentials[name]
	switch {
	case !ValidName(name):
		im.complain("%q: not a valid name", name)
	case len(value) > mebibyte:
		im.complain("%s: larger than 1 MiB", name)
	case len(value) > mebibyte-im.sum:
		im.complain("%s: more than 1 MiB in all", name)
	case taken:
		im.complain("%s: set twice, ignored", name)
	case im.files+1 > inodes || (im.pages+pages)*page > mebibyte:
		im.complain("%s: no space left on device", name)
	default:
		im.Credentials[name] = value
		im.sum += len(value)
		im.pages += pages
		im.files++
	}
}

// ValidName is filename_is_valid() and fdname_is_valid() of systemd, spelled out.
func ValidName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 255 {
		return false
	}
	for _, c := range []byte(s) {
		if c == '/' || c < ' ' || c >= 127 || c == ':' {
			return false
		}
	}
	return true
}

// unbase64 is unbase64mem(): blocks of four, padding only at the very end, no
// bits left over, white space skipped.
func unbase64(in []byte) ([]byte, bool) {
	for _, space := range []string{" ", "\t", "\n", "\r"} {
		in = bytes.ReplaceAll(in, []byte(space), nil)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	if len(in)%4 != 0 {
		return nil, false
	}
	out := []byte{}
	for i := 0; i < len(in); i += 4 {
		block, pad := in[i:i+4], 0
		for pad < 2 && block[3-pad] == '=' {
			pad++
		}
		if pad > 0 && i+4 != len(in) {
			return nil, false
		}
		bits := 0
		for _, c := range block[:4-pad] {
			v := strings.IndexByte(alphabet, c)
			if v < 0 {
				return nil, false
			}
			bits = bits<<6 | v
		}
		bits <<= 6 * pad
		whole := []byte{byte(bits >> 16), byte(bits >> 8), byte(bits)}
		for _, left := range whole[3-pad:] {
			if left != 0 {
				return nil, false
			}
		}
		out = append(out, whole[:3-pad]...)
	}
	return out, true
}
