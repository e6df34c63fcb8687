// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"io/fs"
	"syscall"
)

// SetupError says that a VM's runtime directory could not be made or locked.
type SetupError struct{ Err error }

// Error begins with what could not be made.
func (e *SetupError) Error() string { return "runtime directory: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SetupError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *SetupError) Hint() string {
	var own interface{ Hint() string }
	switch {
	case errors.As(e.Err, &own):
		return own.Hint()
	case errors.Is(e.Err, syscall.ENOSPC), errors.Is(e.Err, syscall.EDQUOT):
		return "make room there: it takes a few kilobytes and a few files"
	case errors.Is(e.Err, fs.ErrPermission), errors.Is(e.Err, syscall.EROFS):
		return "whoever runs vmcred must be able to write there: /run/vmcred for root, $XDG_RUNTIME_DIR for everyone else"
	case errors.Is(e.Err, syscall.EMFILE):
		return "raise the limit on descriptors: LimitNOFILE= of the unit, or `ulimit -n`"
	}
	return ""
}
