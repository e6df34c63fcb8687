// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cgroups are texts of /proc/PID/cgroup, and the unit and slice they mean.
func cgroups() map[string][2]string {
	const none = ""
	return map[string][2]string{
		"0::/system.slice/system-vmcred.slice/vmcred@test-vm.service\n": {"vmcred@test-vm.service", "system-vmcred.slice"},
		"0::/system.slice/x.service":                                    {"x.service", "system.slice"},
		"0::/x.service\n":                                               {"x.service", "-.slice"},
		"0::/init.scope\n":                                              {"init.scope", "-.slice"},
		"0::/system.slice/_cpu.service\n":                               {"cpu.service", "system.slice"},
		"0::/system.slice/__x.service\n":                                {"_x.service", "system.slice"},
		"0::/a.slice/dev-sda1.swap\n":                                   {"dev-sda1.swap", "a.slice"},
		`0::/a.slice/x@a\x2db.service` + "\n":                           {`x@a\x2db.service`, "a.slice"},
		// Hybrid: other hierarchies beside it say nothing.
		"12:devices:/system.slice/evil.service\n1:name=systemd:/evil.service\n0::/system.slice/x.service\n": {"x.service", "system.slice"},
		// What a user, or a unit with Delegate=, makes below its own.
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/vmcred@test-vm.service\n": {"user@1000.service", "user-1000.slice"},
		"0::/user.slice/user-1000.slice/session-1.scope/vmcred@test-vm.service\n":             {"session-1.scope", "user-1000.slice"},
		"0::/system.slice/evil.service/vmcred@test-vm.service\n":                              {"evil.service", "system.slice"},
		"0::/machine.slice/machine-x.scope/payload/system.slice/vmcred@test-vm.service\n":     {"machine-x.scope", "machine.slice"},
		// In none, or out of sight.
		"0::/\n": {none, none}, "": {none, none}, "0::/system.slice\n": {none, none}, "0::\n": {none, none},
		"0::/payload/vmcred@test-vm.service\n": {none, none}, "0::/../vmcred@test-vm.service\n": {none, none}, "0::/..\n": {none, none},
		"0::/../../system.slice/x.service\n": {none, none}, "0::/system.slice//x.service\n": {none, none},
		"0::/system.slice/.service\n": {none, none}, "0::/system.slice/@.service\n": {none, none}, "0::/system.slice/a@b@c.service\n": {none, none},
		"0::/system.slice/x.target\n": {none, none}, "0::/system.slice/x y.service\n": {none, none},
		"1:name=systemd:/system.slice/x.service\n": {none, none},
		"0::/system.slice/x.service (deleted)\n":   {none, none},
	}
}

func TestUnitOf(t *testing.T) {
	for text, want := range cgroups() {
		if unit, slice := unitOf(text); [2]string{unit, slice} != want || UnitOf(text) != want[0] {
			t.Errorf("%q: %q in %q, want %q", text, unit, slice, want)
		}
	}
}

// Whatever a group's name is below a unit's, it is that unit's.
func FuzzUnitOf(f *testing.F) {
	for text := range cgroups() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if unit := UnitOf("0::/system.slice/x.service/" + text); unit != "x.service" && !strings.HasPrefix(text, " (deleted)") {
			t.Errorf("%q: %q", text, unit)
		}
		if unit := UnitOf("0::/../" + text); unit != "" {
			t.Errorf("outside, %q: %q", text, unit)
		}
		unit, slice := unitOf(text)
		if unit != "" && (!isUnit(unit) || strings.HasSuffix(unit, ".slice") || !strings.Contains(text, unit)) {
			t.Errorf("%q: unit %q", text, unit)
		}
		if (unit == "") != (slice == "") || slice != "" && !strings.HasSuffix(slice, ".slice") {
			t.Errorf("%q: unit %q in slice %q", text, unit, slice)
		}
	})
}

func names() map[string][2]string {
	return map[string][2]string{
		"@1b1f3a4c5d6e7f80/unit/x.service/host-api-key":         {"x.service", "host-api-key"},
		"\x001b1f3a4c5d6e7f80/unit/x@a-b.service/k":             {"x@a-b.service", "k"},
		"@a/unit/x.service/k":                                   {"x.service", "k"}, // %x: no leading zeros
		"@1b1f3a4c5d6e7f80/unit/x.service/vmcred.transfer-list": {"x.service", "vmcred.transfer-list"},
		"": {}, "@": {}, "/run/x": {}, "@1b1f3a4c5d6e7f80/unit/x.service": {}, "@1b1f3a4c5d6e7f80/unit/x.service/": {}, "@1b1f3a4c5d6e7f80/unit//k": {},
		"@1b1f3a4c5d6e7f80/unit/x.service/a/b": {}, "@1b1f3a4c5d6e7f80/unit/x/k": {}, "@1B1F3A4C5D6E7F80/unit/x.service/k": {}, "@/unit/x.service/k": {},
		"@11b1f3a4c5d6e7f80/unit/x.service/k": {}, "1b1f3a4c5d6e7f80/unit/x.service/k": {}, "@1b1f3a4c5d6e7f80/unit/x.slice/k": {},
		"@1b1f3a4c5d6e7f80/unit/../k": {}, "@1b1f3a4c5d6e7f80/unit/x.service/a\x00b": {},
	}
}

func TestLoadName(t *testing.T) {
	for name, want := range names() {
		unit, id, ok := LoadName(name)
		if [2]string{unit, id} != want && ok || ok != (want[0] != "") {
			t.Errorf("%q: %q %q %v, want %q", name, unit, id, ok, want)
		}
	}
}

func FuzzLoadName(f *testing.F) {
	for name := range names() {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		unit, id, ok := LoadName(name)
		if ok && (!isUnit(unit) || id == "" || !strings.HasSuffix(name, "/unit/"+unit+"/"+id)) {
			t.Errorf("%q: %q %q", name, unit, id)
		}
	})
}

func TestInvocationOf(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "run/systemd/units")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const id = "0123456789abcdef0123456789abcdef"
	for name, to := range map[string]string{"x.service": id, "short.service": "abc", "odd.service": strings.ToUpper(id)} {
		if err := os.Symlink(to, filepath.Join(dir, "invocation:"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := InvocationOf(root, "x.service"); got != id || err != nil {
		t.Errorf("%q %v", got, err)
	}
	for _, name := range []string{"y.service", "../x.service", ""} {
		if got, err := InvocationOf(root, name); got != "" || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %q %v", name, got, err)
		}
	}
	for _, name := range []string{"short.service", "odd.service"} {
		if got, err := InvocationOf(root, name); got != "" || err == nil {
			t.Errorf("%q: %q %v", name, got, err)
		}
	}
}
