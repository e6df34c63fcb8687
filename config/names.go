// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/credential"
	"github.com/vmcred/vmcred/vm"
)

// varForm is GENERATOR/FILE: each the name of a file, and none that a shell, a link
// or a store's own files could be taken for.
var varForm = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,254}/[A-Za-z0-9][A-Za-z0-9._-]{0,254}$`)

// validateNames checks every credential's names and that each reaches the
// guest under a name of its own.
func (d *decoder) validateNames() {
	owner := map[string]string{} // guest name → the field that has it
	for _, c := range d.spec.Credentials {
		path := join("credentials", c.Host)
		d.validateCredential(path, c)
		if c.Guest == "" || d.said[path] {
			continue
		}
		if was, taken := owner[c.Guest]; taken {
			d.fail(path, "give one of them a name of its own with as:", "%s becomes %s in the guest, and so does %s", c.Host, c.Guest, was)
			continue
		}
		owner[c.Guest] = c.Host
	}
	for _, s := range d.spec.Static {
		path := join("static", s.Name)
		if err := guestName(s.Name); err != nil {
			d.fail(path, "use letters, digits, - _ and .", "%v", err)
		}
		if was, taken := owner[s.Name]; taken {
			d.fail(path, "keep one of the two", "%s is also the guest's name of the secret %s", s.Name, was)
		}
	}
}

func (d *decoder) validateCredential(path string, c vm.Credential) {
	if err := credential.CheckName(c.Host); err != nil {
		d.at[path] = c.Pos
		d.fail(path, "this is the name that LoadCredential= has: use a-z, 0-9 and -", "%v", err)
		return
	}
	if c.Host == credential.TransferList {
		d.at[path] = c.Pos
		d.fail(path, "give it another name; as: keeps the one in the guest", "this name is vmcred's own: the broker hands out the list of what a unit gets under it")
		return
	}
	named := path
	if d.has(join(path, "as")) {
		named = join(path, "as")
	}
	if err := guestName(c.Guest); err != nil {
		d.fail(named, "use A-Z, 0-9 and _", "%v", err)
	}
	switch c.Source.Kind {
	case vm.SourceVar:
		if !varForm().MatchString(c.Source.Path) {
			d.fail(join(path, "var"), "write GENERATOR/FILE, as test-vm-secrets/api-key: letters, digits, \".\", \"_\" and \"-\"", "this does not name a generator's file")
		}
	case vm.SourceSOPS:
		if c.Source.Key == "" {
			d.fail(join(join(path, "sops"), "key"), "", "this must not be empty")
		}
	}
}

// guestName is CheckName plus what SMBIOS cannot carry: its strings have the
// form NAME=VALUE.
func guestName(name string) error {
	if err := credential.CheckName(name); err != nil {
		return err
	}
	if strings.Contains(name, "=") {
		return fmt.Errorf("%q has a =, which ends a name on the way to the guest", name)
	}
	return nil
}

// validateOEMStrings refuses what would end the table early or take a
// declared credential's place: in the guest the first of a name wins.
func (d *decoder) validateOEMStrings() {
	declared := map[string]bool{}
	for _, c := range d.spec.Credentials {
		declared[c.Guest] = true
	}
	for _, s := range d.spec.Static {
		declared[s.Name] = true
	}
	for i, s := range d.spec.OEMStrings {
		path := fmt.Sprintf("oem-strings[%d]", i)
		switch name, is := oemCredential(s); {
		case s == "":
			d.fail(path, "take it away", "an empty string ends the SMBIOS structure, and the guest loses what follows")
		case strings.Contains(s, "\x00"):
			d.fail(path, "", "a NUL ends an SMBIOS string")
		case is && declared[name]:
			d.fail(path, "take it away", "this brings the credential %s once more", name)
		case is && name != "":
			d.warn(path, "write it under static:, where it is checked", "this is the credential %s, written by hand", name)
		}
	}
}

// validateImport refuses a guest that is told to take nothing of what it gets:
// its systemd would start without a word, and without the values.
func (d *decoder) validateImport() {
	s := d.spec
	byHand := slices.ContainsFunc(s.OEMStrings, func(v string) bool {
		_, is := oemCredential(v)
		return is
	})
	if importsNone(s.Boot.Cmdline) && (byHand || len(s.Credentials)+len(s.Static) > 0) {
		d.fail("boot.cmdline", "take the word out, or the credentials",
			"with systemd.import_credentials=no the guest takes no credentials")
	}
}

// importsNone reads the kernel's command line as systemd does, proc_cmdline_get_bool()
// in its src/basic/proc-cmdline.c: "-" is "_", and the last word counts.
func importsNone(cmdline string) bool {
	none := false
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(strings.NewReplacer(`"`, "", "'", "").Replace(word), "=")
		if strings.ReplaceAll(key, "-", "_") == "systemd.import_credentials" {
			none = slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(value))
		}
	}
	return none
}

// oemCredential returns the name an OEM string gives a credential.
func oemCredential(s string) (string, bool) {
	for _, prefix := range []string{"io.systemd.credential:", "io.systemd.credential.binary:"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			name, _, _ := strings.Cut(rest, "=")
			return name, true
		}
	}
	return "", false
}
