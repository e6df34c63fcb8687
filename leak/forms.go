// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"encoding/hex"
	"unicode/utf8"
)

// encoding is one way a value may appear. put writes the encoded value to dst
// and returns the length. It must leave no copy of v elsewhere; 0 means that
// there is no such form.
type encoding struct {
	name  string
	grows int  // the most bytes that one byte of the value becomes
	wraps bool // writers break it over lines
	put   func(dst, v []byte) int
}

const (
	alphabetStd = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	alphabetURL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	digitsLower = "0123456789abcdef"
	digitsUpper = "0123456789ABCDEF"
)

// encodings are in order of preference: of equal forms the first is kept.
func encodings() []encoding {
	return []encoding{
		{"plain", 1, false, func(dst, v []byte) int { return copy(dst, v) }},
		{"base64", 2, true, base64At(0, alphabetStd)},
		{"base64, 1 byte in", 2, true, base64At(1, alphabetStd)},
		{"base64, 2 bytes in", 2, true, base64At(2, alphabetStd)},
		{"base64url", 2, true, base64At(0, alphabetURL)},
		{"base64url, 1 byte in", 2, true, base64At(1, alphabetURL)},
		{"base64url, 2 bytes in", 2, true, base64At(2, alphabetURL)},
		{"hex", 2, true, func(dst, v []byte) int { return hex.Encode(dst, v) }},
		{"upper-case hex", 2, true, upperHex},
		{"json", 6, false, jsonWith(jsonOptions{digits: digitsLower})},
		{"json, for html", 6, false, jsonWith(jsonOptions{digits: digitsLower, html: true})},
		{"json, ascii", 6, false, jsonWith(jsonOptions{digits: digitsLower, ascii: true})},
		{"json, slash escaped", 6, false, jsonWith(jsonOptions{digits: digitsLower, slash: true})},
		{"json, strict ascii", 6, false, jsonWith(jsonOptions{digits: digitsUpper, ascii: true, html: true, plus: true})},
		{"url", 3, false, urlWith(digitsUpper, "%20")},
		{"url form", 3, false, urlWith(digitsUpper, "+")},
		{"url, lower-case", 3, false, urlWith(digitsLower, "%20")},
		{"quoted", 4, false, quoted},
		{"octal", 4, false, octal},
		{"decimal, spaces", 5, false, decimalWith(" ")},
		{"decimal, commas", 5, false, decimalWith(",")},
		{"decimal, commas and spaces", 5, false, decimalWith(", ")},
	}
}

// base64At writes the characters of a base64 text that depend on the value
// alone when in bytes of something else stand before it. Padding and the
// characters shared with a neighbour are left out, so they do not matter.
func base64At(in int, alphabet string) func(dst, v []byte) int {
	return func(dst, v []byte) int {
		n := 0
		for bit := (in*8+5)/6*6 - in*8; bit+6 <= len(v)*8; bit += 6 {
			i, shift := bit/8, bit%8
			w := uint(v[i]) << 8
			if i+1 < len(v) {
				w |= uint(v[i+1])
			}
			dst[n] = alphabet[w>>(10-shift)&63]
			n++
		}
		return n
	}
}

func upperHex(dst, v []byte) int {
	for i, c := range v {
		dst[2*i], dst[2*i+1] = digitsUpper[c>>4], digitsUpper[c&15]
	}
	return 2 * len(v)
}

// jsonOptions are what JSON writers differ in.
type jsonOptions struct {
	digits string // for \u00XX
	html   bool   // < > & escaped, as encoding/json does
	ascii  bool   // everything over 0x7e as \uXXXX, as Python does
	slash  bool   // "/" escaped, as PHP does
	plus   bool   // "+" and quotes as \uXXXX, as .NET does
}

func jsonWith(o jsonOptions) func(dst, v []byte) int {
	return func(dst, v []byte) int {
		text := utf8.Valid(v)
		if !text && !o.ascii {
			return 0 // a writer that keeps UTF-8 cannot carry these bytes
		}
		n := 0
		for i := 0; i < len(v); {
			r, size := rune(v[i]), 1
			if text {
				r, size = utf8.DecodeRune(v[i:])
			}
			n += o.put(dst[n:], r, v[i:i+size])
			i += size
		}
		return n
	}
}

// put writes one character; raw is how it stands in the value.
func (o jsonOptions) put(dst []byte, r rune, raw []byte) int {
	switch r {
	case '"', '\\':
		if o.plus && r == '"' {
			break
		}
		return copy(dst, []byte{'\\', byte(r)})
	case '\n':
		return copy(dst, `\n`)
	case '\r':
		return copy(dst, `\r`)
	case '\t':
		return copy(dst, `\t`)
	case '\b':
		return copy(dst, `\b`)
	case '\f':
		return copy(dst, `\f`)
	case '/':
		if o.slash {
			return copy(dst, `\/`)
		}
	}
	html := o.html && (r == '<' || r == '>' || r == '&' || r == 0x2028 || r == 0x2029)
	plus := o.plus && (r == '+' || r == '"' || r == '\'' || r == '`')
	if r >= 0x20 && (r < 0x7f || !o.ascii) && !html && !plus {
		return copy(dst, raw)
	}
	if r > 0xffff {
		r -= 0x10000
		n := o.unit(dst, 0xd800+r>>10)
		return n + o.unit(dst[n:], 0xdc00+r&0x3ff)
	}
	return o.unit(dst, r)
}

func (o jsonOptions) unit(dst []byte, u rune) int {
	copy(dst, `\u`)
	for i := range 4 {
		dst[2+i] = o.digits[u>>(12-4*i)&15]
	}
	return 6
}

// urlWith escapes all but the characters that RFC 3986 calls unreserved.
func urlWith(digits, space string) func(dst, v []byte) int {
	return func(dst, v []byte) int {
		n := 0
		for _, c := range v {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9',
				c == '-', c == '_', c == '.', c == '~':
				dst[n] = c
				n++
			case c == ' ':
				n += copy(dst[n:], space)
			default:
				dst[n], dst[n+1], dst[n+2] = '%', digits[c>>4], digits[c&15]
				n += 3
			}
		}
		return n
	}
}

// quoted escapes as Go's %q and systemd's cescape do.
func quoted(dst, v []byte) int {
	const short, letter = "\a\b\f\n\r\t\v\\\"", "abfnrtv\\\""
	text := utf8.Valid(v)
	n := 0
next:
	for _, c := range v {
		for i := range len(short) {
			if c == short[i] {
				dst[n], dst[n+1] = '\\', letter[i]
				n += 2
				continue next
			}
		}
		if c < 0x20 || c == 0x7f || c > 0x7f && !text {
			dst[n], dst[n+1], dst[n+2], dst[n+3] = '\\', 'x', digitsLower[c>>4], digitsLower[c&15]
			n += 4
			continue
		}
		dst[n] = c
		n++
	}
	return n
}

// octal escapes as the shell's $'…' and many C programs do.
func octal(dst, v []byte) int {
	n := 0
	for _, c := range v {
		if c >= 0x20 && c < 0x7f && c != '\\' {
			dst[n] = c
			n++
			continue
		}
		dst[n], dst[n+1], dst[n+2], dst[n+3] = '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7
		n += 4
	}
	return n
}

// decimalWith writes bytes as numbers: Go's %v of a slice, or a JSON array.
func decimalWith(between string) func(dst, v []byte) int {
	return func(dst, v []byte) int {
		n := 0
		for i, c := range v {
			if i > 0 {
				n += copy(dst[n:], between)
			}
			if c >= 100 {
				dst[n] = '0' + c/100
				n++
			}
			if c >= 10 {
				dst[n] = '0' + c/10%10
				n++
			}
			dst[n] = '0' + c%10
			n++
		}
		return n
	}
}
