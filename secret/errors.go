// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"errors"
	"fmt"
)

// ErrWiped is what using a value, a key or an arena returns once it was wiped.
var ErrWiped = errors.New("the secret was wiped")

// ErrUnprintable is what every way of turning a value into text or bytes returns.
var ErrUnprintable = errors.New("a secret cannot be encoded, printed or logged")

// TooLargeError says that a reader held more than Max bytes.
type TooLargeError struct {
	Max int // bytes
}

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("larger than %d bytes", e.Max)
}

// LockError says that pages could not be locked in memory.
type LockError struct {
	Bytes int    // what was asked for now
	Limit uint64 // RLIMIT_MEMLOCK in bytes
	Err   error  // the system call's error
}

// Error implements error.
func (e *LockError) Error() string {
	return fmt.Sprintf("cannot lock %d bytes of memory (limit %s): %v", e.Bytes, limitText(e.Limit), e.Err)
}

// Unwrap returns the system call's error.
func (e *LockError) Unwrap() error { return e.Err }

// Hint says what to do about it.
func (e *LockError) Hint() string {
	return "raise the limit on locked memory: LimitMEMLOCK=64M in the unit, or `ulimit -l` in the shell that starts it"
}

func limitText(n uint64) string {
	if n == ^uint64(0) {
		return "none"
	}
	return fmt.Sprintf("%d bytes", n)
}
