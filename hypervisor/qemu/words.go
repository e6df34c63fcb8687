// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// lineMax is how much of one line is passed on, in bytes.
const lineMax = 400

// oneLine makes what another program said fit for a terminal and a log: one
// line, no control or format characters, no broken UTF-8, not endless.
func oneLine(s string) string {
	s = strings.TrimSpace(s)
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			r = ';'
		case r == '\t':
			r = ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > lineMax {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
