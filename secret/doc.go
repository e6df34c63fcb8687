// SPDX-License-Identifier: Apache-2.0

// Package secret keeps values that must not spread: they live in locked pages
// of their own, never in the Go heap, and cannot be printed, logged, marshalled
// or compared by accident.
//
// An [Arena] holds many small values in few mappings: memfd_secret(2) where the
// kernel has it (the pages are then out of reach even of the kernel's own
// mappings), else anonymous memory that is locked, left out of core dumps and
// not inherited by fork. A [Rope] is a text with values in it that is written
// with writev(2) and never put together; a [Memfd] hands one to another process.
//
// What the pages do not cover: registers, and what the kernel saves of them when
// a signal arrives in the middle of a copy; and the pages of a pipe or a socket
// a value was read from.
package secret
