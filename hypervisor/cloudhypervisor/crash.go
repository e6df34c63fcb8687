// SPDX-License-Identifier: Apache-2.0

package cloudhypervisor

import (
	"strings"
	"sync"
)

// panicked is what Rust says when a thread crashes. The VMM may stay then, without
// a guest and without a word.
const panicked = "panicked at"

// crashWatch notices a crash in the VMM's words.
type crashWatch struct {
	once    sync.Once
	crashed chan struct{}
}

func newCrashWatch() *crashWatch { return &crashWatch{crashed: make(chan struct{})} }

func (w *crashWatch) line(text string) {
	if strings.Contains(text, panicked) {
		w.once.Do(func() { close(w.crashed) })
	}
}
