// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"bytes"
	"io"
	"sync"
)

// panicked is what Rust says when a thread crashes. The VMM may stay then, without
// a guest and without a word.
const panicked = "panicked at"

// crashWatch passes the VMM's words on and notices a crash in them.
type crashWatch struct {
	to      io.Writer
	once    sync.Once
	crashed chan struct{}
}

func newCrashWatch(to io.Writer) *crashWatch {
	if to == nil {
		to = io.Discard
	}
	return &crashWatch{to: to, crashed: make(chan struct{})}
}

// Write gets whole lines.
func (w *crashWatch) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(panicked)) {
		w.once.Do(func() { close(w.crashed) })
	}
	return w.to.Write(p)
}
