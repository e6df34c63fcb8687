// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package testhost

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// block is one fenced block of the page.
type block struct {
	section string // the heading above it
	kind    string // "sh", or what a file's language is called
	text    string
	ran     bool
}

// page is docs/systemd.md: its commands are run, and its files are written.
type page struct{ blocks []*block }

func readPage(t *testing.T, path string) *page {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := &page{}
	section, inside := "", (*block)(nil)
	for line := range strings.Lines(string(text)) {
		fence, isFence := strings.CutPrefix(line, "```")
		switch heading, isHeading := strings.CutPrefix(line, "## "); {
		case isFence && inside != nil:
			p.blocks, inside = append(p.blocks, inside), nil
		case isFence:
			inside = &block{section: section, kind: strings.TrimSpace(fence)}
		case inside != nil:
			inside.text += line
		case isHeading:
			section = strings.TrimSpace(heading)
		case strings.HasPrefix(line, "    "):
			t.Errorf("%s: a block without a fence is not run: %q", path, line)
		}
	}
	if inside != nil {
		t.Errorf("%s: a fence is not closed: %q", path, inside.text)
	}
	return p
}

// follow does what the page says in one section, and returns what the commands
// said, block by block.
func (p *page) follow(t *testing.T, c *container, section string) []string {
	t.Helper()
	var said []string
	found := false
	for _, b := range p.blocks {
		if b.section != section {
			continue
		}
		found = true
		if b.kind == "sh" {
			said = append(said, c.do(t, b.text))
		} else {
			c.write(t, b.path(t), b.text)
		}
		b.ran = true
	}
	if !found {
		t.Fatalf("the page has no section %q with something to do", section)
	}
	return said
}

// path is in a file's first line, as a comment.
func (b *block) path(t *testing.T) string {
	t.Helper()
	first, _, _ := strings.Cut(b.text, "\n")
	path, ok := strings.CutPrefix(first, "# /")
	if !ok {
		t.Fatalf("section %q: a block is neither sh nor does it begin with # and its file's path: %q", b.section, first)
	}
	return "/" + path
}

// file returns the text of a file of the page.
func (p *page) file(t *testing.T, path string) string {
	t.Helper()
	for _, b := range p.blocks {
		if b.kind != "sh" && b.path(t) == path {
			return b.text
		}
	}
	t.Fatalf("the page has no file %s", path)
	return ""
}

// install runs the page's section "Install" in the repository. Instead of into
// this machine it goes below dest.
func (p *page) install(t *testing.T, repository, dest, build string) {
	t.Helper()
	for _, b := range p.blocks {
		if b.section != "Install" {
			continue
		}
		cmd := exec.Command("bash", "-euo", "pipefail", "-c", b.text)
		cmd.Dir = repository
		// Variables of make's command line win over those of its file.
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "MAKEFLAGS=DESTDIR="+dest+" BUILD="+build)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", b.text, err, out)
		}
		b.ran = true
	}
}

// wantAllDone fails if the page says something that was not done.
func (p *page) wantAllDone(t *testing.T) {
	t.Helper()
	for _, b := range p.blocks {
		if !b.ran {
			t.Errorf("nothing has run what section %q says: %q", b.section, b.text)
		}
	}
}
