// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmcred/vmcred/internal/cli"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// commands are all that a user can give, the program itself among them.
func commands(c *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			out = append(out, commands(sub)...)
		}
	}
	return out
}

// Every command has a page, which has every flag, every example and a line of
// its own for the index.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	all := commands(cli.Tree())
	if len(all) < 7 {
		t.Fatalf("only %d commands", len(all))
	}
	for _, c := range all {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		page := read(t, dir, "man", name+".1")
		if !strings.Contains(page, "\n"+name+" - "+c.Short+"\n") {
			t.Errorf("%s.1 has no line for the index", name)
		}
		if c.HasParent() {
			parent := strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")
			if !strings.Contains(read(t, dir, "man", parent+".1"), name+"(1)") {
				t.Errorf("%s.1 does not lead to %s", parent, name)
			}
		}
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(page, `\fB--`+f.Name+`\fP`) {
				t.Errorf("%s.1 does not mention --%s", name, f.Name)
			}
		})
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(page, strings.TrimSpace(line)) {
				t.Errorf("%s.1 lacks the example %q", name, line)
			}
		}
	}
	if pages, _ := filepath.Glob(filepath.Join(dir, "man", "*")); len(pages) != len(all) {
		t.Errorf("%d pages for %d commands: %v", len(pages), len(all), pages)
	}
}

// The completions ask the program itself for commands, flags and VMs: here they
// only must be what their shells can read.
func TestCompletions(t *testing.T) {
	dir := t.TempDir()
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	for shell, file := range map[string]string{"bash": "vmcred.bash", "zsh": "_vmcred", "fish": "vmcred.fish"} {
		t.Run(shell, func(t *testing.T) {
			path := filepath.Join(dir, "completion", file)
			if text := read(t, path); !strings.Contains(text, "__complete") || !strings.Contains(text, "vmcred") {
				t.Error("it does not ask the program")
			}
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("SKIPPED: needs %s to see whether it can read the file", shell)
			}
			if out, err := exec.Command(shell, "-n", path).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// The same input gives the same bytes, whenever it is run.
func TestTwiceTheSame(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, dir := range []string{one, two} {
		if err := write(dir); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(one, "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		rel, err := filepath.Rel(one, f)
		if err != nil {
			t.Fatal(err)
		}
		if read(t, f) != read(t, two, rel) {
			t.Errorf("%s differs", rel)
		}
		if strings.HasSuffix(f, ".1") && !strings.Contains(read(t, f), `"1" "Jan 1970" "vmcred"`) {
			t.Errorf("%s says when it was made", rel)
		}
	}
}

func TestNoPlaceToWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(file); err == nil {
		t.Error("writing below a file succeeded")
	}
}
