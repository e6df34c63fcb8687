// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os/signal"
	"syscall"
	"testing"
)

// A VM that nohup(1) started outlives the terminal.
func TestNohup(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	_, stop := (&app{force: make(chan struct{})}).signals()
	defer stop()
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("SIGHUP is not ignored any more")
	}
}
