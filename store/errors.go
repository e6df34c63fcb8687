// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// ErrChanging is a generator that was changed while it was read. Trying again helps, unless
// somebody goes on and on.
var ErrChanging = errors.New("it keeps changing while it is read")

// NotFoundError is a generator, or a file of one, that a store does not have. It is
// fs.ErrNotExist.
type NotFoundError struct {
	Store string // Store.String
	Ref   Ref
	File  string   // empty: the generator itself
	Names []string // what there is instead
}

// Error names what is missing, and where.
func (e *NotFoundError) Error() string {
	what := "generator " + e.Ref.Generator
	if e.File != "" {
		what = e.Ref.Generator + "/" + e.File
	}
	return "there is no " + what + " in " + e.Store
}

// shown is how many names a hint has.
const shown = 10

// Hint says what there is.
func (e *NotFoundError) Hint() string {
	switch n := len(e.Names); {
	case n == 0 && e.File != "":
		return e.Ref.Generator + " has no files"
	case n == 0:
		return "there is none yet"
	case n > shown:
		return fmt.Sprintf("there are %s and %d more", strings.Join(e.Names[:shown], ", "), n-shown)
	case n == 1:
		return "there is " + e.Names[0]
	}
	return "there are " + strings.Join(e.Names, ", ")
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
