// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmcred/vmcred/secret"
)

func TestHintTellsTheLockFromTheFile(t *testing.T) {
	for want, err := range map[string]error{
		"LimitMEMLOCK":   &secret.LockError{Bytes: 1, Err: unix.EPERM},
		"may not read":   &fs.PathError{Op: "open", Path: "/x", Err: unix.EPERM},
		"check the path": fs.ErrNotExist,
	} {
		got, ok := sourceError("x", "/x", err).(*SourceError)
		if !ok || !strings.Contains(got.Hint(), want) {
			t.Errorf("%v: hint %q, want %q", err, got.Hint(), want)
		}
	}
}
