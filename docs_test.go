// SPDX-License-Identifier: Apache-2.0

package vmcred_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is one page of the documentation.
type page struct {
	path   string
	prose  []string // its lines outside of fenced blocks
	blocks []block
	total  int // lines
}

// block is one fenced block.
type block struct {
	lang, where string
	lines       []string
}

func (b block) text() string { return strings.Join(b.lines, "\n") + "\n" }

var fence = regexp.MustCompile("^( *)```([a-z]*)$")

func pages(t *testing.T) []page {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []page
	for _, path := range append([]string{"README.md"}, paths...) {
		out = append(out, readPage(t, path))
	}
	if len(out) < 8 {
		t.Fatalf("found only %d pages", len(out))
	}
	return out
}

func readPage(t *testing.T, path string) page {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := page{path: path}
	var open *block
	indent := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		p.total++
		m := fence.FindStringSubmatch(line)
		switch {
		case m != nil && open == nil:
			open, indent = &block{lang: m[2], where: fmt.Sprintf("%s:%d", path, p.total)}, m[1]
		case m != nil:
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, strings.TrimPrefix(line, indent))
		default:
			p.prose = append(p.prose, line)
		}
	}
	if open != nil {
		t.Fatalf("%s: a fenced block is not closed", open.where)
	}
	return p
}

func (p page) ofLang(lang string) []block {
	var out []block
	for _, b := range p.blocks {
		if b.lang == lang {
			out = append(out, b)
		}
	}
	return out
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans are the words in `code` outside of fenced blocks.
func (p page) spans() []string {
	var out []string
	for _, m := range codeSpan.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
		out = append(out, m[1])
	}
	return out
}

// table returns the cells of all rows of all tables below a heading, "" for the
// whole page, without the heads.
func (p page) table(heading string) [][]string {
	var rows [][]string
	in := heading == ""
	for i, line := range p.prose {
		switch {
		case strings.HasPrefix(line, "#") && heading != "":
			in = strings.TrimLeft(line, "# ") == heading
		case in && strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|---"):
			if i+1 < len(p.prose) && strings.HasPrefix(p.prose[i+1], "|---") {
				continue
			}
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

func TestPagesAreShort(t *testing.T) {
	for _, p := range pages(t) {
		if len(p.prose) > 150 || p.total > 200 {
			t.Errorf("%s has %d lines, %d of them outside of fenced blocks: at most 200 and 150", p.path, p.total, len(p.prose))
		}
	}
}

var (
	link    = regexp.MustCompile(`!?\[[^\]]*\]\(([^)\s]+)\)`)
	unslug  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	aScheme = regexp.MustCompile(`^[a-z]+:`)
)

// anchors are the names that a page's headings have as links' targets.
func (p page) anchors() []string {
	var out []string
	for _, line := range p.prose {
		if rest := strings.TrimLeft(line, "#"); rest != line && strings.HasPrefix(rest, " ") {
			slug := unslug.ReplaceAllString(strings.ToLower(strings.TrimSpace(rest)), "")
			out = append(out, strings.ReplaceAll(slug, " ", "-"))
		}
	}
	return out
}

func TestLinksLeadSomewhere(t *testing.T) {
	linked := map[string]bool{}
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
			if aScheme.MatchString(m[1]) {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := p.path
			if path != "" {
				target = filepath.Join(filepath.Dir(p.path), path)
			}
			linked[target] = linked[target] || p.path == "README.md"
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere", p.path, m[1])
			} else if anchor != "" && !slices.Contains(readPage(t, target).anchors(), anchor) {
				t.Errorf("%s: %s has no heading %q", p.path, target, anchor)
			}
		}
	}
	for _, p := range pages(t) {
		if p.path != "README.md" && !linked[p.path] {
			t.Errorf("README.md does not lead to %s", p.path)
		}
	}
	if !linked["docs/road.svg"] {
		t.Error("README.md does not show docs/road.svg")
	}
}

// The rooms and arrows of docs/design.md are those that TestArrowsRunOneWay holds.
func TestDesignNamesEveryRoom(t *testing.T) {
	told := map[string][]string{}
	for _, row := range readPage(t, "docs/design.md").table("Rooms") {
		room := strings.Trim(row[0], "`")
		told[room] = []string{}
		for _, m := range codeSpan.FindAllStringSubmatch(row[2], -1) {
			told[room] = append(told[room], m[1])
		}
		if row[2] == "all" {
			told[room] = []string{"*"}
		}
	}
	for room, may := range mayImport {
		if got, ok := told[room]; !ok {
			t.Errorf("docs/design.md lacks the room %s", room)
		} else if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(may))) {
			t.Errorf("docs/design.md: %s may import %q, the rule says %q", room, got, may)
		}
	}
	for room := range told {
		if _, ok := mayImport[room]; !ok {
			t.Errorf("docs/design.md has a room %s that is not there", room)
		}
	}
}

var testName = regexp.MustCompile(`^Test[A-Z]\w+$`)

// A page that names a test as its proof names one that is there.
func TestTestsThatPagesNameExist(t *testing.T) {
	there := map[string]bool{}
	for _, f := range sources(t, "_test.go") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(b), -1) {
			there[m[1]] = true
		}
	}
	named := 0
	for _, p := range pages(t) {
		for _, s := range p.spans() {
			if !testName.MatchString(s) {
				continue
			}
			if named++; !there[s] {
				t.Errorf("%s names the test %s, which does not exist", p.path, s)
			}
		}
	}
	if named < 10 {
		t.Errorf("the pages name only %d tests", named)
	}
}
