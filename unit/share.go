// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// A VM's unit has no privileges to start the daemons of its shares with, and must
// not have them: each share has a socket that the VM connects to, and a service
// behind it.

// shareRoot is where these sockets are: a directory for each VM, and nobody but the
// VM's user can connect.
const shareRoot = "/run/vmcred-share"

// socketMax is how long a unix socket's path may be, without its NUL (unix(7)).
const socketMax = 107

// Virtiofsd is the daemon that a share's unit starts.
type Virtiofsd struct {
	Path   string // absolute
	Legacy bool   // the one of QEMU before 8.0
}

// File is one file below the directory of units.
type File struct {
	Path string // relative: "vmcred@x.service.d/vmcred.conf"
	Text []byte
}

// ShareError says which share cannot have units, and why.
type ShareError struct {
	Tag, Message, Tip string
}

// Error returns the message without the hint.
func (e *ShareError) Error() string { return "share " + e.Tag + ": " + e.Message }

// Hint returns what to do about it.
func (e *ShareError) Hint() string { return e.Tip }

// ShareUser is the system user whose rights the daemons of a VM's shares have. It
// is not the VM's: a hypervisor that is taken over could write what the guest may
// only read.
func ShareUser(name string) string { return "vmshare-" + name }

// ShareSocket is where the unit of a VM's share listens.
func ShareSocket(name, tag string) string {
	return filepath.Join(shareRoot, name, escapeName(tag)+".sock")
}

// sharePrefix begins the names of a VM's units for shares. A VM's name may hold
// "-", an escaped tag does not: so no two VMs have a name in common.
func sharePrefix(name string) string { return "vmcred-share-" + name + "-" }

// shareUnit is a share's unit without its suffix.
func shareUnit(name, tag string) string { return sharePrefix(name) + escapeName(tag) }

// IsShareUnit says whether a file's name is that of a unit of one of the VM's shares.
func IsShareUnit(name, file string) bool {
	rest, ok := strings.CutPrefix(file, sharePrefix(name))
	suffix := filepath.Ext(rest)
	return ok && (suffix == ".socket" || suffix == ".service") && !strings.Contains(rest, "-")
}

// escapeName writes a word so that it can be part of a unit's name, as
// systemd-escape(1) does, but for the slash: no path is meant.
func escapeName(word string) string {
	var b strings.Builder
	for i := range len(word) {
		c := word[i]
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == ':' || c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// Served are the shares that have units: in an instance of our template, those
// that no other program serves.
func Served(spec *vm.Spec) []vm.Share {
	if !isOurs(spec) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(spec.Shares), func(sh vm.Share) bool {
		return sh.Socket != "" && sh.Socket != ShareSocket(spec.Name, sh.Tag)
	})
}

// Files are all files that the VM's unit needs: its drop-in, and a socket and a
// service for each share. The daemon is not looked at without shares.
func Files(spec *vm.Spec, d Virtiofsd) ([]File, error) {
	text, err := DropIn(spec)
	if err != nil {
		return nil, err
	}
	files := []File{{filepath.Join(spec.Unit+".d", dropInName), text}}
	for _, sh := range Served(spec) {
		if err := checkShare(spec, sh); err != nil {
			return nil, err
		}
		service, err := shareService(spec, sh, d)
		if err != nil {
			return nil, err
		}
		name := shareUnit(spec.Name, sh.Tag)
		files = append(files, File{name + ".socket", shareSocket(spec, sh)}, File{name + ".service", service})
	}
	return files, nil
}

func checkShare(spec *vm.Spec, sh vm.Share) error {
	if path := ShareSocket(spec.Name, sh.Tag); len(path) > socketMax {
		return &ShareError{sh.Tag, fmt.Sprintf("its socket %s has %d characters, and %d are possible", path, len(path), socketMax), "shorten the tag, or leave out what is not a letter or digit"}
	}
	why := badPath(sh.Source)
	if why == "" && strings.ContainsRune(sh.Source, ':') {
		why = "has a colon in it, which ends a path in a unit"
	}
	if why != "" {
		return &ShareError{sh.Tag, fmt.Sprintf("its path %q %s", sh.Source, why), "give the directory another name"}
	}
	return nil
}

// shareHead begins a share's unit; user is the unit that makes its user, if one does.
func shareHead(spec *vm.Spec, sh vm.Share, kind, user string) *bytes.Buffer {
	b := &bytes.Buffer{}
	fmt.Fprintf(b, "# Made by vmcred units %s.\n[Unit]\n", spec.Name)
	fmt.Fprintf(b, "Description=Shared directory %s of VM %s%s\n", strings.ReplaceAll(sh.Tag, "%", "%%"), spec.Name, kind)
	fmt.Fprintf(b, "PartOf=%s\n", spec.Unit)
	if user != "" {
		fmt.Fprintf(b, "Wants=%[1]s\nAfter=%[1]s\n", user)
	}
	return b
}

func shareSocket(spec *vm.Spec, sh vm.Share) []byte {
	b := shareHead(spec, sh, " (socket)", "vmcred-user@"+spec.Name+".service")
	fmt.Fprintf(b, "\n[Socket]\nListenStream=%s\n", ShareSocket(spec.Name, sh.Tag))
	fmt.Fprintf(b, "SocketUser=%s\nSocketMode=0600\nDirectoryMode=0755\nRemoveOnStop=yes\n", User(spec.Name))
	return b.Bytes()
}

// shareDependencies is what the VM's drop-in says of them. After the services,
// too: so the VM ends first, and they by themselves.
func shareDependencies(b *bytes.Buffer, spec *vm.Spec) {
	shares := Served(spec)
	if len(shares) == 0 {
		return
	}
	b.WriteString("\n[Unit]\n")
	for _, sh := range shares {
		name := shareUnit(spec.Name, sh.Tag)
		fmt.Fprintf(b, "Requires=%[1]s.socket\nAfter=%[1]s.socket %[1]s.service\n", name)
	}
}
