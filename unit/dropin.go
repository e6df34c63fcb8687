// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vmcred/vmcred/broker/wire"
	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/vm"
)

// maxUnitAndID keeps a unit's name and a credential's within the address that
// systemd uses when the source is a socket: NUL, 16 hex digits, "/unit/",
// UNIT, "/", ID in 108 bytes. Beyond it the unit fails and nobody says why.
const maxUnitAndID = 83

// templateStop is the stop-timeout that the template's own TimeoutStopSec= is
// made for, and stopGrace what the runner needs after it to quit and to kill.
const (
	templateStop = 15 * time.Second
	stopGrace    = 30 * time.Second
)

// DropInError says which credential cannot stand in a drop-in, and why.
type DropInError struct {
	Credential string
	Message    string
	Tip        string
	Pos        vm.Pos // of the credential in the VM's file
}

// Error returns the message without the hint.
func (e *DropInError) Error() string { return e.Credential + ": " + e.Message }

// Hint returns what to do about it.
func (e *DropInError) Hint() string { return e.Tip }

// Problem is the error with its place in the VM's file.
func (e *DropInError) Problem() vm.Problem {
	return vm.Problem{Pos: e.Pos, Field: "credentials." + e.Credential, Message: e.Message, Hint: e.Tip}
}

// User is the system user a VM runs as.
func User(name string) string { return "vmcred-" + name }

// UserCommand makes that user, for a VM that no unit runs: a unit has it made by
// vmcred-user@NAME.service.
func UserCommand(name string) string {
	return "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin " + User(name)
}

// DropIn returns the drop-in for the unit that runs a VM: one line for each
// credential whose source systemd itself can read, a comment for each other. A unit
// that is no instance of our template has the values of the store from the broker's
// socket, and a transfer list beside them; in one of ours the runner asks for them.
// Whether a `file:` source may be where it is, is not looked at: config.Host knows.
func DropIn(spec *vm.Spec) ([]byte, error) {
	var b bytes.Buffer
	header(&b, spec)
	for _, c := range spec.Credentials {
		if err := line(&b, spec, c); err != nil {
			return nil, err
		}
	}
	if asksBroker(spec) {
		if err := transferList(&b, spec); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n[Unit]\nWants=%[1]s\nAfter=%[1]s\n", BrokerSocket)
	}
	if isOurs(spec) {
		access(&b, spec)
		if !mayEmulate(spec) {
			b.WriteString("\n# Nothing here writes the code that it runs, as software emulation does.\nMemoryDenyWriteExecute=yes\n")
		}
		if spec.StopTimeout > templateStop {
			fmt.Fprintf(&b, "\n# Longer than the VM's stop-timeout, %s.\nTimeoutStopSec=%d\n",
				spec.StopTimeout, int((spec.StopTimeout+stopGrace+time.Second-1)/time.Second))
		}
		shareDependencies(&b, spec)
		netDependencies(&b, spec)
	}
	return b.Bytes(), nil
}

// isOurs is true if the VM runs in an instance of our template.
func isOurs(spec *vm.Spec) bool { return spec.Unit == OwnUnit(spec.Name) }

// asksBroker is true if systemd itself asks the broker for credentials of the VM's unit.
func asksBroker(spec *vm.Spec) bool {
	return !isOurs(spec) && slices.ContainsFunc(spec.Credentials, func(c vm.Credential) bool { return c.Source.Kind == vm.SourceVar })
}

// transferList writes the line for the list, without which a receiver cannot tell a value
// from one that was cut on the way.
func transferList(b *bytes.Buffer, spec *vm.Spec) error {
	if n := len(spec.Unit) + len(credential.TransferList) - maxUnitAndID; n > 0 {
		return &DropInError{
			Credential: credential.TransferList, Pos: vm.Pos{File: spec.File},
			Message: fmt.Sprintf("it goes along with every value of var:, and its name and the unit's are %d bytes together, and systemd takes %d", n+maxUnitAndID, maxUnitAndID),
			Tip:     fmt.Sprintf("shorten the unit's name by %d characters", n),
		}
	}
	fmt.Fprintf(b, "# What came from the broker, to be compared with: vmcred run --expect-transfer-list does.\n")
	fmt.Fprintf(b, "LoadCredential=%s:%s\n", credential.TransferList, wire.LoadSocket)
	return nil
}

// mayEmulate is false if the VMM certainly needs KVM. Both were run like that: cloud-hypervisor
// 53 and QEMU 7.2 with KVM map nothing that is writable and executable, TCG does.
func mayEmulate(spec *vm.Spec) bool {
	return spec.Hypervisor != "cloud-hypervisor" && (spec.Hypervisor != "qemu" || spec.QEMU.Accel != "kvm")
}

// access opens what the template keeps shut: files the VM writes to outside of
// /var/lib/vmcred, and disks that are devices.
func access(b *bytes.Buffer, spec *vm.Spec) {
	var lines []string
	for _, d := range spec.Disks {
		switch path := quote(d.Path); {
		case strings.HasPrefix(d.Path, "/dev/") && d.ReadOnly:
			lines = append(lines, "DeviceAllow="+path+" r")
		case strings.HasPrefix(d.Path, "/dev/"):
			lines = append(lines, "DeviceAllow="+path+" rw")
		case !d.ReadOnly && !strings.HasPrefix(d.Path, templateWrites):
			lines = append(lines, "ReadWritePaths="+quote("-"+d.Path))
		}
	}
	if c := spec.Console; c.Mode == vm.ConsoleFile && !strings.HasPrefix(c.Path, templateWrites) {
		lines = append(lines, "ReadWritePaths="+quote("-"+filepath.Dir(c.Path)))
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\n# What the VM writes to, and its devices.\n%s\n", strings.Join(lines, "\n"))
	}
}

// templateWrites is where the template's own ReadWritePaths= leads.
const templateWrites = "/var/lib/vmcred/"

// quote writes one word of a list: settings that take several words unquote
// them (systemd.syntax(7)), LoadCredential= does not.
func quote(word string) string {
	word = strings.ReplaceAll(word, "%", "%%")
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._@+:=%-") == "" {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}

func header(b *bytes.Buffer, spec *vm.Spec) {
	path := DropInPath(spec.Unit)
	fmt.Fprintf(b, "# The secrets of the VM %s, as its file names them. Where no generator writes this:\n", spec.Name)
	fmt.Fprintf(b, "#   mkdir -p %s\n", filepath.Dir(path))
	if len(Served(spec)) > 0 { // more files than this one
		fmt.Fprintf(b, "#   vmcred units %s --output %s\n", spec.Name, Dir)
	} else {
		fmt.Fprintf(b, "#   vmcred units %s > %s\n", spec.Name, path)
	}
	b.WriteString("#   systemctl daemon-reload\n")
	b.WriteString("\n[Service]\n")
}

func line(b *bytes.Buffer, spec *vm.Spec, c vm.Credential) error {
	fail := func(tip, format string, args ...any) error {
		return &DropInError{Credential: c.Host, Message: fmt.Sprintf(format, args...), Tip: tip, Pos: c.Pos}
	}
	if err := credential.CheckName(c.Host); err != nil {
		return fail("use a-z, 0-9 and -", "%v", err)
	}
	key, path := "LoadCredential", c.Source.Path
	switch c.Source.Kind {
	case vm.SourceFile:
	case vm.SourceEncrypted:
		key = "LoadCredentialEncrypted"
	case vm.SourceVar:
		if isOurs(spec) {
			fmt.Fprintf(b, "# %s is %s of the host's vars: the runner asks the broker for it.\n", c.Host, path)
			return nil
		}
		fmt.Fprintf(b, "# %s of the host's vars:\n", path)
		path = wire.LoadSocket
	case vm.SourceUnit:
	default:
		fmt.Fprintf(b, "# %s comes from %s:, which systemd cannot read.\n", c.Host, c.Source.Kind)
		return nil
	}
	if n := len(spec.Unit) + len(c.Host); n > maxUnitAndID {
		return fail(fmt.Sprintf("shorten it, or the name of the unit, by %d characters; as: keeps its name in the guest", n-maxUnitAndID),
			"the unit's name and the credential's are %d bytes together, and systemd takes %d", n, maxUnitAndID)
	}
	if c.Source.Kind == vm.SourceUnit {
		fmt.Fprintf(b, "# %s has no source in the VM's file. Give it one, here or in another drop-in:\n", c.Host)
		fmt.Fprintf(b, "#LoadCredential=%s:/path/to/its/file\n", escapeID(c.Host))
		return nil
	}
	if why := badPath(path); why != "" {
		return fail("give the file another name, or make a link to it", "its path %q %s", path, why)
	}
	fmt.Fprintf(b, "%s=%s:%s\n", key, escapeID(c.Host), strings.ReplaceAll(path, "%", "%%"))
	return nil
}

// escapeID writes a name so that systemd's extract_first_word() and specifier
// expansion give it back. A name never holds ":" (credential.CheckName).
func escapeID(id string) string {
	id = strings.NewReplacer(`\`, `\\`, "%", "%%").Replace(id)
	if strings.HasPrefix(id, " ") {
		id = `\` + id
	}
	// A space before the ":" is not at the end of the value and stays.
	return id
}

// badPath says why a path cannot be written into a unit file: systemd takes it
// as it stands, without quotes or escapes.
func badPath(path string) string {
	switch {
	case !filepath.IsAbs(path):
		return "is not absolute"
	case filepath.Clean(path) != path:
		return `has "//", "." or ".." in it`
	case !utf8.ValidString(path), strings.ContainsFunc(path, unicode.IsControl):
		return "is not UTF-8 without control characters"
	case strings.HasSuffix(path, " "):
		return "ends in a space"
	case goesOn(path):
		return `ends in a backslash`
	}
	return ""
}
