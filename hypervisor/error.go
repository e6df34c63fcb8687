// SPDX-License-Identifier: Apache-2.0

package hypervisor

import "errors"

// Error is a fault of this host or of a VMM, in words for people.
type Error struct {
	Message string
	Cure    string // what to do about it, or empty
	Err     error  // the cause, or nil
}

// Error returns the message and its cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Hint returns what to do about it, or nothing; the cause may know it.
func (e *Error) Hint() string {
	var cause interface{ Hint() string }
	if e.Cure == "" && errors.As(e.Err, &cause) {
		return cause.Hint()
	}
	return e.Cure
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
