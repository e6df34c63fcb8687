// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// AppendJSON appends public text as the inside of a JSON string (RFC 8259),
// without its quotes: only what must be escaped is.
func AppendJSON(to []byte, text string) []byte {
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			to = append(to, '\\', c)
		case c < ' ':
			to = append(to, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			to = append(to, c)
		}
	}
	return to
}

// JSONLen is the length of AppendJSON's result, -1 for a text that is not UTF-8:
// JSON has no way to say it.
func JSONLen(text string) int {
	if !utf8.ValidString(text) {
		return -1
	}
	n := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			n += 2
		case c < ' ':
			n += 6
		default:
			n++
		}
	}
	return n
}
