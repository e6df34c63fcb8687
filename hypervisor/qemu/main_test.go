// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"slices"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also the stand-in for QEMU: started with QEMU's options, this
// binary plays the part that the VM's name says (see standin_test.go).
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "-nodefaults") {
		os.Exit(standIn(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}
