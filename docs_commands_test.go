// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ownTest are pages whose commands another test runs: those for root, in a host that
// internal/testhost boots.
func ownTest(path string) bool {
	return path == "docs/systemd.md" || path == "docs/generator.md" || path == "docs/vars.md" || path == "docs/network.md"
}

// command is one command line of a page, with what the page shows of its output.
type command struct {
	where string
	words []string
	shown []string // nil: the page does not say
}

var starts = regexp.MustCompile(`(?m)^(\$ |make |vmcred |apt|systemctl |git )`)

// commands are those of a page's blocks: a line each in sh, after "$ " in console.
func (p page) commands(t *testing.T) []command {
	t.Helper()
	var out []command
	for _, b := range p.blocks {
		for _, line := range b.lines {
			rest, prompted := strings.CutPrefix(line, "$ ")
			switch {
			case b.lang == "sh", b.lang == "console" && prompted:
				if strings.ContainsAny(rest, `'"|<>&;*`) {
					t.Errorf("%s: %q is too much for this test's shell", b.where, line)
				}
				out = append(out, command{where: b.where, words: strings.Fields(rest)})
			case b.lang == "console":
				if len(out) == 0 {
					t.Fatalf("%s: output before the first command", b.where)
				}
				last := &out[len(out)-1]
				last.shown = append(last.shown, line)
			case b.lang == "" && starts.MatchString(line):
				t.Errorf("%s: %q is a command in a block that does not say so", b.where, line)
			case !slices.Contains([]string{"", "yaml", "ini"}, b.lang):
				t.Fatalf("%s: blocks in %q are not checked", b.where, b.lang)
			}
		}
	}
	return out
}

func TestCommandsOfPages(t *testing.T) {
	seen, installed := 0, false
	for _, p := range pages(t) {
		if ownTest(p.path) {
			continue
		}
		commands := p.commands(t)
		seen += len(commands)
		t.Run(p.path, func(t *testing.T) {
			var host *host
			defer func() { host.close() }()
			for _, c := range commands {
				t.Run(strings.Join(c.words, " "), func(t *testing.T) {
					switch c.words[0] {
					case "make":
						checkMake(t, c.words[1:])
						if c.words[1] == "install" && !installed {
							installed = true // once: the pages give the same line
							checkInstall(t, c.words[1:])
						}
					case "vmcred":
						if host == nil {
							host = newHost(t, p)
						}
						host.check(t, c)
					case "examples/guest/build":
						checkBuilder(t, c.words[1:])
					case "systemd-creds":
						checkInGuest(t, c.words)
					default:
						t.Errorf("%s: nothing checks %q", c.where, c.words)
					}
				})
			}
		})
	}
	if seen < 12 {
		t.Errorf("the pages have only %d commands", seen)
	}
}

// checkMake: the target is one that "make help" lists, and make knows what to do
// for it. Only install is done, too.
func checkMake(t *testing.T, words []string) {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("SKIPPED: needs make (apt install make)")
	}
	help := output(t, "make", "help")
	if !regexp.MustCompile(`(?m)^  make ` + regexp.QuoteMeta(words[0]) + ` `).MatchString(help) {
		t.Errorf("make help does not list %s:\n%s", words[0], help)
	}
	output(t, "make", append([]string{"-n"}, words...)...)
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkInstall installs into an empty directory.
func checkInstall(t *testing.T, words []string) {
	t.Helper()
	root := t.TempDir()
	output(t, "make", append(words, "DESTDIR="+root, "BUILD="+t.TempDir())...)
	at := filepath.Join(root, "usr/local")
	if got := output(t, filepath.Join(at, "bin/vmcred"), "version"); !strings.HasPrefix(got, "vmcred ") {
		t.Errorf("the installed program says %q", got)
	}
	unit, err := os.ReadFile(filepath.Join(at, "lib/systemd/system/vmcred@.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/usr/local/bin/vmcred run %i\n") {
		t.Errorf("the installed unit starts another program: %v\n%s", err, unit)
	}
	unit, err = os.ReadFile(filepath.Join(at, "lib/systemd/system/vmcred-broker.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/usr/local/bin/vmcred broker\n") {
		t.Errorf("the installed broker's unit starts another program: %v\n%s", err, unit)
	}
	unit, err = os.ReadFile(filepath.Join(at, "lib/systemd/system/vmcred-net@.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=/usr/local/bin/vmcred net up %i\n") {
		t.Errorf("the installed unit for taps starts another program: %v\n%s", err, unit)
	}
	if to, err := os.Stat(filepath.Join(at, "lib/systemd/system-generators/vmcred-generator")); err != nil || to.Mode()&0o100 == 0 {
		t.Errorf("the generator does not lead to a program: %v", err)
	}
	for _, f := range []string{
		"lib/systemd/system/vmcred-user@.service", "lib/systemd/system/vmcred-share-user@.service", "lib/systemd/system/vmcred-broker.socket", "lib/systemd/system/vmcred-runner.socket", "lib/systemd/system/vmcred.target",
		"share/man/man1/vmcred.1", "share/man/man1/vmcred-run.1",
		"share/bash-completion/completions/vmcred", "share/zsh/site-functions/_vmcred", "share/fish/vendor_completions.d/vmcred.fish",
	} {
		if st, err := os.Stat(filepath.Join(at, f)); err != nil || st.Size() == 0 || st.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
	output(t, "make", "uninstall", "DESTDIR="+root)
	if left := output(t, "find", root, "!", "-type", "d"); left != "" {
		t.Errorf("uninstall leaves %s", left)
	}
}

// checkBuilder: the builder takes these options. --where keeps it from building.
func checkBuilder(t *testing.T, options []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "examples/guest/build", append(options, "--where")...)
	cmd.Env = append(os.Environ(), "VMCRED_CACHE=/x")
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && strings.Contains(string(out), "not a Debian"):
		t.Skipf("SKIPPED: needs a Debian, or --suite: %s", out)
	case err != nil || !strings.HasPrefix(string(out), "/x/guest-"):
		t.Errorf("%v: %s", err, out)
	}
}

// checkInGuest: the demo's guest runs this, and so does every test with that guest.
func checkInGuest(t *testing.T, words []string) {
	t.Helper()
	b, err := os.ReadFile("examples/guest/report")
	if err != nil {
		t.Fatal(err)
	}
	for i := range words {
		words[i] = regexp.QuoteMeta(words[i])
	}
	if !regexp.MustCompile(strings.Join(words, `( --no-pager)? `)).Match(b) {
		t.Errorf("examples/guest/report does not run %q", words)
	}
}
