// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"strings"
	"testing"

	"github.com/vmcred/vmcred/shim"
)

// TestFlagsOfExec: what docs/exec.md says of a flag is what becomes of it.
func TestFlagsOfExec(t *testing.T) {
	rows := readPage(t, "docs/exec.md").table("Flags")
	if len(rows) < 10 {
		t.Fatalf("only %d rows", len(rows))
	}
	for _, row := range rows {
		want := strings.HasPrefix(row[1], "refused")
		for _, m := range codeSpan.FindAllStringSubmatch(row[0], -1) {
			_, problems := shim.Parse([]string{"cloud-hypervisor", m[1]}, "/")
			refused, unknown := false, false
			for _, p := range problems {
				of := strings.HasPrefix(p.Field, "argument 1 (")
				refused = refused || of && strings.HasPrefix(p.Message, "this is refused")
				unknown = unknown || of && strings.Contains(p.Message, "no such flag")
			}
			if unknown || refused != want {
				t.Errorf("%s: the page says %q: unknown %t, refused %t", m[1], row[1], unknown, refused)
			}
		}
	}
}
