// SPDX-License-Identifier: Apache-2.0

// Command vmcred starts microVMs and hands each one its secrets as it starts.
package main

import (
	"os"

	"github.com/vmcred/vmcred/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args))
}
