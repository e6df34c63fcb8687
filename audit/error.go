// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Error is why nothing could be put on record, or a log not be read.
type Error struct {
	Log  string // its path
	What string // what is wrong, or what was not possible
	Err  error  // the system's error, or nil
	Cure string // what to do about it, or empty
}

// Error returns "audit log PATH: what is wrong".
func (e *Error) Error() string {
	s := "audit log " + e.Log + ": " + e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Hint says what to do about it.
func (e *Error) Hint() string {
	var inner interface{ Hint() string }
	switch err := e.Err; {
	case e.Cure != "":
		return e.Cure
	case errors.As(err, &inner) && inner.Hint() != "":
		return inner.Hint()
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "make room on its file system: without a record no secret is handed out"
	case errors.Is(err, unix.EROFS):
		return "its file system is read-only: without a record no secret is handed out"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "it must belong to who runs this, mode 0600, in a directory that only they can write"
	case errors.Is(err, unix.EFBIG):
		return "raise the limit on a file's size (ulimit -f, LimitFSIZE=)"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "raise the limit on open files (ulimit -n, LimitNOFILE=)"
	}
	return "without a record no secret is handed out"
}

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Err }

// beginAnew is the way out of a log that cannot be continued.
func beginAnew(path string) string {
	return fmt.Sprintf("see 'vmcred audit verify'; to begin a new log, move this one and %s%s away together, and keep them", path, keySuffix)
}

// failed wraps an error of the system with what helps against it.
func (l *Log) failed(what string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	return &Error{Log: l.path(), What: what, Err: err}
}

func (l *Log) wrong(cure, format string, args ...any) error {
	return &Error{Log: l.path(), What: fmt.Sprintf(format, args...), Cure: cure}
}
