// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNoKernel: a VMM would start with any of these, or say what is not so.
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
			got := faults(Access(spec(path), nil, nil))
			if want := "error: boot.kernel: " + path + tc.want; tc.want != "" && !strings.HasPrefix(got, want) || tc.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
