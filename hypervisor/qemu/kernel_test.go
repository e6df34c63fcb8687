// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrongBoot: what only QEMU can tell has its hint.
func TestWrongBoot(t *testing.T) {
	d, info, sp := installed(t)
	self, err := os.Executable() // an ELF file, and no kernel
	if err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(t.TempDir(), "initrd")
	write(t, large, nil, 0o644)
	if err := os.Truncate(large, sp.Memory); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ kernel, initrd, want string }{
		"initrd": {sp.Boot.Kernel, large, "memory:"},
		"kernel": {self, "", "CONFIG_PVH"},
	} {
		t.Run(name, func(t *testing.T) {
			s := *sp
			s.Boot.Kernel, s.Boot.Initrd = tc.kernel, tc.initrd
			l, _ := launchOf(t, d, info, &s, values(t, nil))
			m, err := d.Start(t.Context(), l)
			if err == nil {
				_ = m.Kill()
			}
			if err == nil || !strings.Contains(hintOf(err), tc.want) {
				t.Errorf("%v (hint %q)", err, hintOf(err))
			}
		})
	}
}
