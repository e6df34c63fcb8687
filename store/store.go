// SPDX-License-Identifier: Apache-2.0

// Package store is what keeps secrets at rest, whatever it is: a value is known by its
// generator, which made it, and by the name of its file. It knows no VM.
package store

import (
	"context"
	"iter"
	"strings"

	"github.com/vmcred/vmcred/secret"
)

// Ref is a generator: the unit of change, all its files are replaced together.
type Ref struct {
	Scope     Scope
	Generator string
}

// ParseVar splits a `var:` source, "GENERATOR/FILE", into its generator, of this machine's
// own scope, and the file.
func ParseVar(path string) (Ref, string) {
	generator, file, _ := strings.Cut(path, "/")
	return Ref{Generator: generator}, file
}

// Scope is whose a generator is. The empty one is this machine's own.
type Scope string

// Version is one state of a generator's files. Two that differ are two states; it says
// nothing else, neither what they hold nor which was first. It has no control characters
// and at most 64 bytes, and is no secret.
type Version string

// File is a value to be kept.
type File struct {
	Name  string
	Value *secret.Value // stays the caller's
}

// FileMeta is a file without its value.
type FileMeta struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// Meta is a generator without its values.
type Meta struct {
	Ref     Ref        `json:"ref"`
	Version Version    `json:"version"`
	Files   []FileMeta `json:"files"` // by name
}

// Store keeps the files of generators. It may be used from several goroutines, and several
// processes may use one.
type Store interface {
	// String names the store in messages: "the vars in /var/lib/vmcred/vars".
	String() string
	// Pin takes the state of these generators at one moment. Whatever is put later, the
	// snapshot goes on giving what was there then. A generator that does not exist is a
	// *NotFoundError.
	Pin(ctx context.Context, refs ...Ref) (Snapshot, error)
	// Put replaces all files of a generator, or none. base is the version that is to be
	// replaced, "" if there must be none; a *ConflictError says that it is another one by
	// now. It returns when the new state is durable.
	Put(ctx context.Context, r Ref, base Version, files []File) (Version, error)
	// List yields every generator, by scope and name. An error ends it.
	List(ctx context.Context) iter.Seq2[Meta, error]
}

// Snapshot is some generators at one moment.
type Snapshot interface {
	// Version is that of a generator that was pinned.
	Version(r Ref) Version
	// Open reads one file into the arena; at most credential.MaxValue bytes. A file that
	// the generator does not have is a *NotFoundError; an empty one is a value of 0 bytes.
	Open(ctx context.Context, a *secret.Arena, r Ref, file string) (*secret.Value, error)
	// Close gives up what is held. Values that were read stay.
	Close() error
}
