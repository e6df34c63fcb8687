// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"unicode/utf8"

	"github.com/vmcred/vmcred/credential"
)

// jsonNumber is a number as RFC 8259 has it.
var jsonNumber = pattern(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// json reads a mapping of anything into the JSON object that says the same, its
// keys in the file's order, a null as null: it is for a program that is not ours.
func (d *decoder) json(to *[]byte) func(string, *node) {
	return func(path string, n *node) {
		if n.kind != kindMapping {
			d.fail(path, "", "this must be a mapping (key: value), not %s", n.what())
			return
		}
		*to = d.appendJSON(nil, path, n)
	}
}

func (d *decoder) appendJSON(b []byte, path string, n *node) []byte {
	switch n.kind {
	case kindMapping:
		b = append(b, '{')
		first := true
		d.pairs(path, n, func(sub string, p pair) {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(d.appendText(b, sub, p.key), ':')
			b = d.appendJSON(b, sub, p.value)
		})
		return append(b, '}')
	case kindSequence:
		b = append(b, '[')
		first := true
		d.list(path, n, func(sub string, c *node) {
			if !first {
				b = append(b, ',')
			}
			first = false
			b = d.appendJSON(b, sub, c)
		})
		return append(b, ']')
	}
	return d.appendScalar(b, path, n)
}

// appendScalar takes what YAML and JSON write alike: 0x1F and .inf are no JSON.
func (d *decoder) appendScalar(b []byte, path string, n *node) []byte {
	switch n.typ {
	case typeString:
		return d.appendText(b, path, n.text)
	case typeInt, typeFloat:
		if !jsonNumber().MatchString(n.text) {
			d.fail(path, "write it in plain decimal digits, or in quotes if it is a text", "this is no number that JSON has")
			return b
		}
		return append(b, n.text...)
	case typeBool:
		if !slices.Contains([]string{"true", "false"}, n.text) {
			d.fail(path, "write true or false, or put it in quotes if it is a text", "this must be true or false")
			return b
		}
		return append(b, n.text...)
	default:
		return append(b, "null"...)
	}
}

func (d *decoder) appendText(b []byte, path, text string) []byte {
	if !utf8.ValidString(text) {
		d.fail(path, "", "this is not UTF-8, which JSON is")
		return b
	}
	return append(credential.AppendJSON(append(b, '"'), text), '"')
}
