// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"testing"
)

// READY=1 is told by who listens at the command line's own address, and by nobody else.
func TestWithoutReady(t *testing.T) {
	var told []string
	tell := withoutReady(func(s string) { told = append(told, s) })
	for _, s := range []string{"STATUS=a", "READY=1\nSTATUS=running", "READY=1", "STOPPING=1\nSTATUS=b"} {
		tell(s)
	}
	if want := []string{"STATUS=a", "STATUS=running", "STOPPING=1\nSTATUS=b"}; !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
}
