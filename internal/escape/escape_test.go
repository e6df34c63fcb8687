// SPDX-License-Identifier: Apache-2.0

package escape

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// through is what a filter makes of the input, cut at the given places.
func through(s Scope, input []byte, cuts ...int) string {
	var out bytes.Buffer
	f := NewFilter(&out, s)
	at := 0
	for _, c := range cuts {
		c = max(at, min(c, len(input)))
		_, _ = f.Write(input[at:c])
		at = c
	}
	_, _ = f.Write(input[at:])
	return out.String()
}

func TestWhatPasses(t *testing.T) {
	const esc = "\x1b"
	for in, want := range map[string][2]string{ // to look at, to work in
		"a\tb\r\n\b\ac":                        {"a\tb\r\n\b\ac", "="},
		"größer 🙂 　x":                          {"größer 🙂 　x", "="},
		"\x00\x05\x0b\x0c\x0e\x0f\x11\x7fx":    {"x", "="},
		"a\xffb\xc3":                           {"a\ufffdb", "="},
		"\xe2\x82x\xc3\xa4":                    {"\ufffdxä", "="},
		"\u009b31m\u202eabc\u200b":             {"31mabc", "="},
		esc + "[1;31mred" + esc + "[0m":        {esc + "[1;31mred" + esc + "[0m", "="},
		esc + "[38:2::1:2:3m":                  {esc + "[38:2::1:2:3m", "="},
		esc + "[>4;2m" + esc + "[?4m":          {"", "="},
		esc + "[2J" + esc + "[3J" + esc + "[K": {esc + "[2J" + esc + "[K", "="},
		esc + "[?2J":                           {"", "="},
		esc + "[5A" + esc + "[1;2H":            {esc + "[5A" + esc + "[1;2H", "="},
		esc + "[s" + esc + "[u" + esc + "[1;2s" + esc + "[?u" + esc + "[>1u": {esc + "[s" + esc + "[u", "="},
		esc + "7" + esc + "8" + esc + "M":                                    {esc + "7" + esc + "8" + esc + "M", "="},
		esc + "[1;5rx":                                                       {"x", esc + "[1;5rx"},
		esc + "=" + esc + ">":                                                {"", esc + "=" + esc + ">"},
		esc + "[?25lx" + esc + "[?25h":                                       {esc + "[?25lx" + esc + "[?25h", "="},
		esc + "[?1049;2004;25hx":                                             {esc + "[?25hx", esc + "[?1049h" + esc + "[?25hx"},
		esc + "[4h" + esc + "[20h":                                           {"", esc + "[4h"},
		esc + "[?1000h" + esc + "[?1006h" + esc + "[?2004h" + esc + "[?69hx": {"x", "="},
		esc + "]0;title\ax" + esc + "]52;c;AAAA" + esc + "\\y":               {"xy", "="},
		esc + "Pq\a#1" + esc + "\\x" + esc + "_a" + esc + "\\y" + esc + "^b" + esc + "\\z" + esc + "Xc" + esc + "\\": {"xyz", "="},
		esc + "[6n" + esc + "[c" + esc + "[>c" + esc + "Z" + esc + "[5n" + esc + "[?6n" + esc + "[x" + esc + "[18tx": {"x", "="},
		esc + "P$qm" + esc + "\\x" + esc + "[?25$p" + esc + "[1 q" + esc + "[!p":                                     {"x", "="},
		esc + "(0qqq" + esc + "(B" + esc + "%@" + esc + "#8" + esc + "c" + esc + "nx":                                {"qqqx", "="},
		esc + "[9999999b" + esc + "[5i" + esc + "[1q" + esc + "[Sx":                                                  {"x", "="},
		esc + "[3\n1mx":                              {"\n" + esc + "[31mx", "="},
		esc + "[31\x18mx" + esc + "]a\x1ay":          {"mxy", "="},
		esc + "[31" + esc + "[32mx":                  {esc + "[32mx", "="},
		esc + "[31äx":                                {"äx", "="},
		esc + "]0;" + esc + "[31mx":                  {esc + "[31mx", "="},
		esc + "[" + strings.Repeat("1", 65) + "mx":   {"x", "="},
		"x" + esc + "]" + strings.Repeat("y", 1<<20): {"x", "="},
		esc + "[31":                                  {"", "="},
	} {
		if want[1] == "=" {
			want[1] = want[0]
		}
		for s, w := range want {
			if got := through(Scope(s), []byte(in)); got != w {
				t.Errorf("%.80q becomes %q, want %q (scope %d)", in, got, w, s)
			}
		}
	}
}

func TestEndlessStringsTakeNoMemory(t *testing.T) {
	f := NewFilter(&bytes.Buffer{}, Interact)
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	for _, start := range []string{"\x1b]", "\x1bP", "\x1b[", "\x1b("} {
		_, _ = f.Write([]byte(start))
		for range 16 {
			_, _ = f.Write(bytes.ReplaceAll(chunk, []byte("x"), []byte("1")))
		}
		if cap(f.seq) > 2*sequenceMax || cap(f.rune) > 8 {
			t.Errorf("%q keeps %d and %d bytes", start, cap(f.seq), cap(f.rune))
		}
		_, _ = f.Write([]byte("\x18"))
	}
}

// Close undoes what was done, and nothing else.
func TestClose(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                    "",
		"\x1b[31mred\x1b]0;tit":    "\x1b[m",
		"\x1b[?25l":                "\x1b[?25h",
		"\x1b[?1049h\x1b[?1h\x1b=": "\x1b>\x1b[?1l\x1b[?1049l",
		"\x1b[2;5r\x1b[4h\x1b[?7l": "\x1b7\x1b[r\x1b8\x1b[?7h\x1b[4l",
	} {
		var out bytes.Buffer
		f := NewFilter(&out, Interact)
		_, _ = f.Write([]byte(in))
		out.Reset()
		if err := f.Close(); err != nil || out.String() != want {
			t.Errorf("after %q: %q %v, want %q", in, out.String(), err, want)
		}
		out.Reset()
		_, _ = f.Write([]byte("x\x1b[31m"))
		if err := f.Close(); err != nil || out.String() != "" {
			t.Errorf("a second time: %q %v", out.String(), err)
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestWriterThatFails(t *testing.T) {
	f := NewFilter(broken{}, Show)
	if _, err := f.Write([]byte("\x1b[31m")); err == nil {
		t.Error("no error")
	}
	if err := f.Close(); err == nil {
		t.Error("no error")
	}
}

// blocked is a terminal that stands still.
type blocked struct{ begun, release chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	close(b.begun)
	<-b.release
	return len(p), nil
}

func TestCloseDoesNotWaitForAWrite(t *testing.T) {
	b := blocked{make(chan struct{}), make(chan struct{})}
	f := NewFilter(b, Show)
	done := make(chan struct{})
	go func() { _, _ = f.Write([]byte("\x1b[31m")); close(done) }()
	<-b.begun
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	close(b.release)
	<-done
}

var (
	mayShow     = regexp.MustCompile(`\x1b(\[[0-9;]*[A-HfdPLMX@]|\[[0-9;:]*m|\[[012]?[JK]|\[[su]|\[\?25[hl]|[78DEM])`)
	mayInteract = regexp.MustCompile(`\x1b(\[[0-9;]*r|\[\?(1|7|47|1047|1048|1049)[hl]|\[4[hl]|[=>])`)
)

// forbidden is the first thing in a filter's output that may not be there.
func forbidden(s Scope, out string) string {
	out = mayShow.ReplaceAllString(out, "")
	if s == Interact {
		out = mayInteract.ReplaceAllString(out, "")
	}
	for _, r := range out {
		if !unicode.IsGraphic(r) && !strings.ContainsRune("\r\n\t\b\a", r) {
			return string(r)
		}
	}
	return ""
}

func FuzzFilter(f *testing.F) {
	for _, seed := range []string{
		"plain\r\n", "\x1b[31mä\x1b[0m", "\x1b]52;c;AAAA\a", "\x1bP$qm\x1b\\", "\x1b[?1049h\x1b[6n", "\x1b[1;31\x1b]x\x1b[m\xe2\x82\xac",
		"\x9b6n", "\u009b6n", "\x1b\x1b[c", "\x1b[\x1b]\x18x", "\x1b[31\n;1m",
	} {
		f.Add([]byte(seed), 3, 7)
	}
	f.Fuzz(func(t *testing.T, in []byte, a, b int) {
		for _, s := range []Scope{Show, Interact} {
			whole := through(s, in)
			if bad := forbidden(s, whole); bad != "" {
				t.Errorf("%q becomes %q, which holds %q", in, whole, bad)
			}
			if cut := through(s, in, a, b); cut != whole {
				t.Errorf("%q cut at %d and %d becomes %q, whole %q", in, a, b, cut, whole)
			}
			if again := through(s, []byte(whole)); again != whole {
				t.Errorf("%q becomes %q, and that %q", in, whole, again)
			}
		}
	})
}

// Input that is made of the pieces that matter gets further than random bytes.
func TestAnySplitGivesTheSame(t *testing.T) {
	pieces := rapid.SampledFrom([]string{
		"\x1b", "[", "]", "?", "25", "h", "l", "m", "1", ";", ":", "c", "n", "J", "3", "\a", "\\", "P", "(", "\x18", "ä", "\xe2", "\x82", "\n", "x",
	})
	rapid.Check(t, func(t *rapid.T) {
		in := []byte(strings.Join(rapid.SliceOfN(pieces, 0, 60).Draw(t, "pieces"), ""))
		cuts := rapid.SliceOfN(rapid.IntRange(0, len(in)), 0, 10).Draw(t, "cuts")
		for _, s := range []Scope{Show, Interact} {
			whole := through(s, in)
			if bad := forbidden(s, whole); bad != "" {
				t.Errorf("%q becomes %q, which holds %q", in, whole, bad)
			}
			if got := through(s, in, cuts...); got != whole {
				t.Errorf("%q cut at %v becomes %q, whole %q", in, cuts, got, whole)
			}
		}
	})
}
