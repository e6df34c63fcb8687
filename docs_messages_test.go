// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmcred/vmcred/internal/cli"
)

// literals are the strings in the Go sources, without those of tests.
func literals(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, f := range sources(t, ".go") {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil {
					out = append(out, s)
				}
			}
			return true
		})
	}
	return out
}

// Every message that the page quotes is still one that the program says.
func TestMessagesExist(t *testing.T) {
	all := literals(t)
	rows := readPage(t, "docs/troubleshooting.md").table("Messages")
	if len(rows) < 10 {
		t.Fatalf("only %d messages", len(rows))
	}
	for _, row := range rows {
		spans := codeSpan.FindAllStringSubmatch(row[0], -1)
		if len(spans) == 0 {
			t.Errorf("no message in %q", row[0])
		}
		for _, m := range spans {
			parts := strings.Split(m[1], "…")
			if len(strings.Join(parts, "")) < 8 {
				t.Errorf("%q is too short to be found", m[1])
			}
			for i := range parts {
				parts[i] = regexp.QuoteMeta(strings.TrimSpace(parts[i]))
			}
			re := regexp.MustCompile(strings.Join(parts, ".*"))
			if !slices.ContainsFunc(all, re.MatchString) {
				t.Errorf("docs/troubleshooting.md quotes %q, which nothing says", m[1])
			}
		}
	}
}

// exitCodes are the constants of internal/cli.
func exitCodes(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "internal/cli/root.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "exit") && len(v.Values) == 1 {
			out = append(out, v.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	return out
}

func TestExitStatuses(t *testing.T) {
	codes := exitCodes(t)
	if len(codes) < 5 {
		t.Fatalf("found only the exit codes %q", codes)
	}
	var told []string
	for _, row := range readPage(t, "docs/troubleshooting.md").table("Exit status") {
		told = append(told, row[0])
	}
	if !slices.Equal(told, codes) {
		t.Errorf("docs/troubleshooting.md has the exit statuses %q, the program %q", told, codes)
	}
	unit, err := os.ReadFile("systemd/vmcred@.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"RestartForceExitStatus=133\n", "RestartPreventExitStatus=78 243\n"} {
		if !strings.Contains(string(unit), line) {
			t.Errorf("the unit lacks %q, which the page speaks of", line)
		}
	}
}

var flagName = regexp.MustCompile(`--[a-z][a-z-]*`)

// flags are all of the program's, and its commands.
func flags() (flags, commands map[string]bool) {
	flags, commands = map[string]bool{"--help": true}, map[string]bool{}
	all := cli.Tree().Commands()
	for _, c := range all {
		all = append(all, c.Commands()...)
		commands[c.Name()] = true
	}
	for _, c := range all {
		for _, name := range flagName.FindAllString(c.Flags().FlagUsages(), -1) {
			flags[name] = true
		}
	}
	return flags, commands
}

var commandLine = regexp.MustCompile(`^vmcred ([a-z]+)( |$)`)

// Flags and commands that a text names are the program's, or the guest builder's; one
// page speaks of another program's.
func TestFlagsExist(t *testing.T) {
	known, commands := flags()
	builder, err := os.ReadFile("examples/guest/build")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, p := range pages(t) {
		for _, s := range p.spans() {
			if m := commandLine.FindStringSubmatch(s); m != nil && !commands[m[1]] {
				t.Errorf("%s: there is no command %q", p.path, s)
			}
			for _, word := range strings.Fields(s) {
				ours := strings.HasPrefix(s, "--") || strings.HasPrefix(s, "vmcred ")
				if !ours || !strings.HasPrefix(word, "--") {
					continue
				}
				if p.path == "docs/exec.md" && !known[word] {
					continue // cloud-hypervisor's: TestFlagsOfExec
				}
				if found[word] = true; !known[word] && !strings.Contains(string(builder), "  "+word+" ") {
					t.Errorf("%s: there is no flag %s", p.path, word)
				}
			}
		}
	}
	if len(found) < 3 {
		t.Errorf("the pages name only the flags %q", slices.Sorted(maps.Keys(found)))
	}
}
