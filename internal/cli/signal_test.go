// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os/signal"
	"syscall"
	"testing"
)

// A VM that nohup(1) or a shell's "&" started outlives the terminal: a signal
// that is ignored as we start stays so.
func TestIgnoredSignalsStaySo(t *testing.T) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	_, stop := (&app{force: make(chan struct{})}).signals()
	defer stop()
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if !signal.Ignored(s) {
			t.Errorf("%v is not ignored any more", s)
		}
	}
}
