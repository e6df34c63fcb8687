// SPDX-License-Identifier: Apache-2.0

// Command empty starts a program and waits for it: the least that a runner
// written in Go can do.
package main

import (
	"os"
	"os/exec"
)

func main() {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if cmd.Run() != nil {
		os.Exit(1)
	}
}
