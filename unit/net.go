// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/vmcred/vmcred/vm"
)

// NetUnit is the unit that makes a VM's taps before its start, and takes them away
// after its end.
func NetUnit(name string) string { return "vmcred-net@" + name + ".service" }

// netDependencies is what the VM's drop-in says of it, for a VM with taps to make.
func netDependencies(b *bytes.Buffer, spec *vm.Spec) {
	if slices.ContainsFunc(spec.Interfaces, vm.Interface.Made) {
		fmt.Fprintf(b, "\n# Its taps.\n[Unit]\nRequires=%[1]s\nAfter=%[1]s\n", NetUnit(spec.Name))
	}
}
