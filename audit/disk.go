// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"io"
)

// disk is the directory of a log. Names hold no slash.
type disk interface {
	Path() string // for messages
	// Open opens a file to read and write; an absent one is fs.ErrNotExist, or made.
	Open(name string, create bool) (file, error)
	// Read opens a file to read.
	Read(name string) (file, error)
	// Lock opens a file as Open does, and waits until nobody else has it locked.
	Lock(ctx context.Context, name string, create bool) (file, error)
	Names() ([]string, error)
	Link(old, name string) error
	Rename(old, name string) error
	Remove(name string) error
	Sync() error // makes names durable
}

// file is an open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error // makes the content and the size durable
	Same(other file) bool
}
