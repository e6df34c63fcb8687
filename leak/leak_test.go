// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"testing"

	"github.com/vmcred/vmcred/secret"
)

// value puts a test value into locked memory.
func value(t testing.TB, v []byte) *secret.Value {
	t.Helper()
	s, err := secret.Make(len(v), func(dst []byte) (int, error) { return copy(dst, v), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Wipe)
	return s
}

// needles prepares a search for one value named "token".
func needles(t testing.TB, v []byte) *Needles {
	t.Helper()
	n, err := NewNeedles(Needle{Name: "token", Value: value(t, v)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}
