// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"

	"github.com/vmcred/vmcred/vm"
)

// RefusedError says that the VM was not started and that trying again will not help.
type RefusedError struct{ Problems vm.Problems }

func (e *RefusedError) Error() string { return e.Problems.Error() }

// FailedError says that the VM was not started or did not end well; a restart may help.
type FailedError struct {
	Op  string // "start", "run", "stop"
	Err error
	Do  string // the hint
}

func (e *FailedError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }

func (e *FailedError) Unwrap() error { return e.Err }

// Hint says what to do about it, or is empty.
func (e *FailedError) Hint() string {
	var h interface{ Hint() string }
	if e.Do == "" && errors.As(e.Err, &h) {
		return h.Hint()
	}
	return e.Do
}

func refused(problems ...vm.Problem) error { return &RefusedError{Problems: problems} }
