// SPDX-License-Identifier: Apache-2.0

package virtiofs

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/hypervisor/hostcheck"
	"github.com/vmcred/vmcred/vm"
)

// Check lists which shares the virtiofsd of this host cannot serve. It looks for
// it, and asks its version, only if a share needs one. What the directories are,
// and who may read them, is hostcheck's.
func Check(spec *vm.Spec, o Options) []vm.Problem {
	c := hostcheck.New(spec)
	var d Daemon
	for i, sh := range spec.Shares {
		if sh.Socket != "" {
			continue
		}
		if d.Path == "" {
			var err error
			if d, err = Probe(context.Background(), o); err != nil {
				c.Fault("shares", err.Error(), hintOf(err))
				break
			}
		}
		id, err := hostcheck.ShareUser(sh)
		if err != nil {
			continue // hostcheck.Access says so
		}
		if err := d.refuses(sh, id); err != nil {
			c.Fault(fmt.Sprintf("shares[%d]", i), err.Error(), hintOf(err))
		}
	}
	return c.Problems()
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
