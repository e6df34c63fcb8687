// SPDX-License-Identifier: Apache-2.0

// Command man writes man pages and shell completions from the command tree
// into a directory: man/*.1 and completion/*.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/vmcred/vmcred/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	man, completion := filepath.Join(dir, "man"), filepath.Join(dir, "completion")
	for _, d := range []string{man, completion} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	tree := cli.Tree()
	tree.DisableAutoGenTag = true
	tree.InitDefaultVersionFlag()
	epoch := time.Unix(0, 0) // the same input gives the same pages
	if err := doc.GenManTree(tree, &doc.GenManHeader{Section: "1", Source: "vmcred", Manual: "vmcred", Date: &epoch}, man); err != nil {
		return err
	}
	if err := tree.GenBashCompletionFileV2(filepath.Join(completion, "vmcred.bash"), true); err != nil {
		return err
	}
	if err := tree.GenZshCompletionFile(filepath.Join(completion, "_vmcred")); err != nil {
		return err
	}
	return tree.GenFishCompletionFile(filepath.Join(completion, "vmcred.fish"), true)
}
