// SPDX-License-Identifier: Apache-2.0

package store

import "io/fs"

// NotFoundError is a generator, or a file of one, that a store does not have. It is
// fs.ErrNotExist.
type NotFoundError struct {
	Store string // Store.String
	Ref   Ref
	File  string // empty: the generator itself
	Near  string // a name that may have been meant, or empty
}

// Error names what is missing, and where.
func (e *NotFoundError) Error() string {
	what := "generator " + e.Ref.Generator
	if e.File != "" {
		what = e.Ref.Generator + "/" + e.File
	}
	return "there is no " + what + " in " + e.Store
}

// Hint says what may have been meant.
func (e *NotFoundError) Hint() string {
	if e.Near == "" {
		return ""
	}
	return "did you mean " + e.Near + "?"
}

// Unwrap returns fs.ErrNotExist.
func (e *NotFoundError) Unwrap() error { return fs.ErrNotExist }

// ConflictError says that a generator is not in the state that was to be replaced.
type ConflictError struct {
	Store     string
	Ref       Ref
	Base, Now Version // "" is: it does not exist
}

// Error says which generator.
func (e *ConflictError) Error() string {
	switch {
	case e.Base == "":
		return "generator " + e.Ref.Generator + " exists already in " + e.Store
	case e.Now == "":
		return "generator " + e.Ref.Generator + " is gone from " + e.Store
	}
	return "generator " + e.Ref.Generator + " was changed by somebody else in " + e.Store
}

// Hint says what to do about it.
func (e *ConflictError) Hint() string { return "look at what is there now, and do it again" }
