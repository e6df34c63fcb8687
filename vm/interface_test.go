// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestAlias: a tap is one VM's, and its alias says all of how it is attached.
func TestAlias(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,21}[a-z0-9])?`)
	nic := rapid.Custom(func(t *rapid.T) Interface {
		return Interface{Bridge: rapid.StringMatching(`[!-+\--.0-9;-~]{0,15}`).Draw(t, "bridge"), Isolated: rapid.Bool().Draw(t, "isolated")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, x, y := name.Draw(t, "a"), name.Draw(t, "b"), nic.Draw(t, "x"), nic.Draw(t, "y")
		alias := x.Alias(a)
		if strings.HasPrefix(alias, AliasPrefix(b)) != (a == b) {
			t.Errorf("%q is %s's and %s's", alias, a, b)
		}
		same := a == b && x.Bridge == y.Bridge && x.Isolated == y.Isolated
		if (alias == y.Alias(b)) != same {
			t.Errorf("%+v of %s and %+v of %s: %q", x, a, y, b, alias)
		}
		if len(alias) > 255 {
			t.Errorf("%q is too long for the kernel", alias)
		}
	})
}
