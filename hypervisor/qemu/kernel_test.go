// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoKernel: QEMU would start with any of these, or say what is not so.
func TestNoKernel(t *testing.T) {
	setup := func(magic string) string { return strings.Repeat("\x00", 0x202) + magic }
	for name, tc := range map[string]struct{ head, want string }{
		"a bzImage":   {setup("HdrS") + "and more", ""},
		"an ELF file": {"\x7fELF and more", ""},
		"empty":       {"", " is empty ["},
		"short":       {"\x7fEL", " is no kernel: neither a bzImage nor an ELF file [give"},
		"text":        {strings.Repeat("root:x:0:0:root:/root:/bin/sh\n", 40), " is no kernel: "},
		"almost":      {setup("HdrT"), " is no kernel: "},
		"cut":         {setup("Hdr"), " is no kernel: "},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kernel")
			write(t, path, []byte(tc.head), 0o644)
			got := faults(New(Options{}).CheckAccess(spec(path), emulation, nil))
			if want := "error: boot.kernel: " + path + tc.want; tc.want != "" && !strings.HasPrefix(got, want) || tc.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

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
