// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/unit"
	"github.com/vmcred/vmcred/vm"
)

// The first systemd that knows a setting, systemd.exec(5).
const (
	systemdImport = 254
	systemdRename = 257
)

// guest compares what is delivered with what the guest's units ask for.
func (c *checker) guest(requests []unit.Request) {
	asked := map[string]bool{}
	for _, r := range requests {
		for name := range c.delivered {
			if r.Wants(name) {
				asked[name] = true
			}
		}
	}
	var loose []string // delivered, and asked for by nobody
	for _, name := range slices.Sorted(maps.Keys(c.delivered)) {
		if !asked[name] && !systemdReads(name) {
			loose = append(loose, name)
		}
	}
	meant := map[string]bool{}
	for _, r := range requests {
		c.settings(r)
		if name := r.Literal(); name != "" && !systemdReads(name) {
			if _, ok := c.delivered[name]; !ok {
				meant[c.unmet(r, loose)] = true
			}
		}
	}
	for _, name := range loose {
		if it := c.delivered[name]; !meant[name] {
			hint := fmt.Sprintf("a guest's unit gets it with LoadCredential=ID:%s", name)
			c.add(vm.Warning, it.pos, it.field, hint, "no unit of the guest asks for %s", name)
		}
	}
}

// unmet reports a request that nothing meets, and returns the loose name that
// was probably meant.
func (c *checker) unmet(r unit.Request, loose []string) string {
	name := r.Literal()
	line := fmt.Sprintf("nobody delivers it (%s: %s)", r.Unit, setting(r))
	if near := twin(name, loose); near != "" {
		sev := vm.Warning
		if same(name, near) {
			sev = vm.Error
		}
		c.add(sev, r.Pos, name, c.didYouMean(name, near), "%s", line)
		return near
	}
	// Missing system credentials are no error to systemd: an import takes what
	// there is, and SetCredential= stands in for a load.
	if r.Fallback || r.Setting == "ImportCredential" {
		return ""
	}
	hint := "declare it under credentials: or static:, unless the guest has it in /etc/credstore; its unit starts all the same, without the file"
	if near := twin(name, slices.Sorted(maps.Keys(c.delivered))); near != "" {
		hint = c.didYouMean(name, near)
	}
	c.add(vm.Warning, r.Pos, name, hint, "%s", line)
	return ""
}

func (c *checker) didYouMean(asked, delivered string) string {
	hint := fmt.Sprintf("did you mean %s?", delivered)
	it := c.delivered[delivered]
	if it.host == "" || "HOST_"+delivered != asked {
		return hint
	}
	return hint + fmt.Sprintf(" It comes from the key %s: call that host-%s, or add as: %s", it.host, it.host, asked)
}

// setting shows a request as its line in the unit's file.
func setting(r unit.Request) string {
	if r.Setting == "ImportCredential" {
		return r.Setting + "=" + r.Name
	}
	return r.Setting + "=" + r.ID + ":" + r.Name
}

// settings finds requests that this guest's systemd does not understand, or
// that cannot work with what is delivered.
func (c *checker) settings(r unit.Request) {
	wants := false
	for name := range c.delivered {
		wants = wants || r.Wants(name)
	}
	if !wants {
		return
	}
	have := c.spec.Guest.Systemd
	need := 0
	switch {
	case r.Setting == "ImportCredential" && r.ID != "":
		need = systemdRename
	case r.Setting == "ImportCredential":
		need = systemdImport
	case r.Setting == "LoadCredentialEncrypted":
		c.add(vm.Warning, r.Pos, r.Name, fmt.Sprintf("write LoadCredential=%s:%s", r.ID, r.Name),
			"%s expects an encrypted credential and gets this one in plain", r.Unit)
	}
	if have < need {
		c.add(vm.Warning, r.Pos, r.Name, fmt.Sprintf("if the guest is newer, say guest: {systemd: %d}; else use LoadCredential=", need),
			"%s: the guest's systemd %d does not know this; %d is the first", setting(r), have, need)
	}
}

// systemdReads says whether systemd itself, not a unit of the user's, takes a
// credential of this name. All such names have a dot (systemd.system-credentials(7)).
func systemdReads(name string) bool {
	family, _, ok := strings.Cut(name, ".")
	_, known := slices.BinarySearchFunc(families(), family, cmp.Compare[string])
	return ok && known
}

func families() []string {
	return []string{
		"agetty", "cryptenroll", "cryptsetup", "firstboot", "fstab", "getty", "home", "import", "journal", "login",
		"network", "passwd", "rd", "shell", "ssh", "sysctl", "system", "systemd", "sysusers", "tmpfiles", "tty",
		"udev", "userdb", "vconsole", "veritysetup", "vmm",
	}
}
