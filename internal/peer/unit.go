// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// UnitOf is the system unit of a process, by the text of its /proc/PID/cgroup
// (cgroups(7)); empty if it is in none. It is the outermost: below it whoever the group
// is delegated to may make groups of any name, and a user may below user@UID.service.
func UnitOf(cgroup string) string {
	unit, _ := unitOf(cgroup)
	return unit
}

// unitOf also returns the slice, "-.slice" for the root's.
func unitOf(cgroup string) (unit, slice string) {
	slice = "-.slice"
	for line := range strings.Lines(cgroup) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			continue
		}
		// What is outside of our own cgroup namespace begins so (cgroup_namespaces(7)).
		if path == ".." || strings.HasPrefix(path, "../") {
			return "", ""
		}
		for name := range strings.SplitSeq(path, "/") {
			// systemd writes "_" before a name that would be a file of the kernel's
			// (cg_escape() in its src/basic/cgroup-util.c).
			name = strings.TrimPrefix(name, "_")
			if !isUnit(name) {
				return "", ""
			}
			if !strings.HasSuffix(name, ".slice") {
				return name, slice
			}
			slice = name
		}
		return "", ""
	}
	return "", ""
}

// isUnit: a unit that has processes, by its name (systemd.unit(5)).
func isUnit(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name) > 255 || name[0] == '@' || strings.Count(name, "@") > 1 {
		return false
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(`:_.\-@`, c) >= 0) {
			return false
		}
	}
	switch name[dot+1:] {
	case "service", "scope", "socket", "mount", "swap", "slice":
		return true
	}
	return false
}

// LoadName reads the name that systemd's child binds before it connects to the socket of
// a LoadCredential=: NUL, a random number of up to 16 hexadecimal digits (without leading
// zeros), "/unit/", the unit, "/", the credential's id (load_credential() in its source's
// src/core, execute.c of version 250 to exec-credential.c of today). The name may begin with "@" instead of NUL, as net.UnixAddr has it. Any
// process can bind it: compare the unit with Peer.Unit.
func LoadName(name string) (unit, id string, ok bool) {
	if name == "" || name[0] != '@' && name[0] != 0 {
		return "", "", false
	}
	random, rest, found := strings.Cut(name[1:], "/unit/")
	if !found || len(random) == 0 || len(random) > 16 || strings.Trim(random, "0123456789abcdef") != "" {
		return "", "", false
	}
	unit, id, found = strings.Cut(rest, "/")
	if !found || id == "" || strings.ContainsAny(id, "/\x00") || !isUnit(unit) || strings.HasSuffix(unit, ".slice") {
		return "", "", false
	}
	return unit, id, true
}

// InvocationOf is a unit's present invocation, 32 hexadecimal digits. systemd keeps it
// as a link below root's /run/systemd/units for as long as the unit is not inactive; the
// error is fs.ErrNotExist if there is none.
func InvocationOf(root, unit string) (string, error) {
	if !isUnit(unit) {
		return "", fmt.Errorf("%q is no unit: %w", unit, os.ErrNotExist)
	}
	id, err := os.Readlink(filepath.Join(root, "/run/systemd/units", "invocation:"+unit))
	switch {
	case err != nil:
		return "", err
	case len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "":
		return "", errors.New("the invocation of " + unit + " has another form")
	}
	return id, nil
}
