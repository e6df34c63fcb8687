// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// output is standard output for what a command has to say. It remembers the
// first write that failed: a plan that a full disk cut is not a plan.
type output struct {
	f   *os.File
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	// A reader that has seen enough ("| head") is no failure.
	if o.err == nil && err != nil && !errors.Is(err, syscall.EPIPE) {
		o.err = fmt.Errorf("writing to standard output: %w", err)
	}
	return n, err
}
