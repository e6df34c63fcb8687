// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/vmcred/vmcred/vm"
)

// parseJSON reads one JSON value. A YAML parser would read most of it too, but
// not surrogate pairs ("\ud83d\ude00"), which JSON writers emit.
func parseJSON(file string, data []byte) (*node, vm.Problems) {
	j := &jsonReader{file: file, data: data}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, vm.Problems{emptyFile(file)}
	}
	if !utf8.Valid(data) {
		return nil, vm.Problems{{Pos: vm.Pos{File: file}, Message: "this is not JSON: it is not UTF-8"}}
	}
	// The whole is checked first: only here errors have a place in the file.
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, vm.Problems{j.syntax(err)}
	}
	j.dec = json.NewDecoder(bytes.NewReader(data))
	j.dec.UseNumber()
	n, err := j.value(0)
	if err != nil {
		return nil, vm.Problems{{Pos: j.pos(int(j.dec.InputOffset())), Message: "this is not JSON: " + err.Error()}}
	}
	return n, nil
}

type jsonReader struct {
	file string
	data []byte
	dec  *json.Decoder
	line int // lines before mark
	mark int // an offset at or before the next position asked for
	bol  int // offset where the current line begins
}

// pos gives line and column (in runes) of an offset; offsets come in order.
func (j *jsonReader) pos(off int) vm.Pos {
	off = max(0, min(off, len(j.data)))
	if off < j.mark {
		j.line, j.mark, j.bol = 0, 0, 0
	}
	for i, c := range j.data[j.mark:off] {
		if c == '\n' {
			j.line++
			j.bol = j.mark + i + 1
		}
	}
	j.mark = off
	return vm.Pos{File: j.file, Line: j.line + 1, Column: utf8.RuneCount(j.data[j.bol:off]) + 1}
}

func (j *jsonReader) syntax(err error) vm.Problem {
	p := vm.Problem{Pos: vm.Pos{File: j.file}, Message: "this is not JSON: " + err.Error()}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		p.Pos = j.pos(int(syntax.Offset) - 1) // Offset counts the byte that does not fit
		if int(syntax.Offset) >= len(j.data) && strings.Contains(syntax.Error(), "unexpected end") {
			p.Pos, p.Message = j.pos(len(j.data)), "this is not JSON: the file ends in the middle"
		}
	}
	return p
}

// next returns the place where the next token begins.
func (j *jsonReader) next() vm.Pos {
	off := int(j.dec.InputOffset())
	for off < len(j.data) && strings.IndexByte(" \t\r\n,:", j.data[off]) >= 0 {
		off++
	}
	return j.pos(off)
}

var errSurrogate = errors.New(`half of a surrogate pair (\ud800 to \udfff)`)

// text refuses what encoding/json replaces by U+FFFD without a word.
func (j *jsonReader) text(from int64, s string) (string, error) {
	if strings.ContainsRune(s, utf8.RuneError) {
		raw := j.data[from:j.dec.InputOffset()]
		if bytes.Count(raw, []byte("\uFFFD"))+escapedFFFD(raw) != strings.Count(s, "\uFFFD") {
			return "", errSurrogate
		}
	}
	return s, nil
}

// escapedFFFD counts \ufffd, but not behind a backslash that is escaped itself.
func escapedFFFD(raw []byte) int {
	n := 0
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if rest := raw[i+1:]; len(rest) >= 5 && bytes.EqualFold(rest[:5], []byte("ufffd")) {
			n++
		}
		i++ // what the backslash escapes
	}
	return n
}

func (j *jsonReader) value(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, errors.New("it is nested too deeply")
	}
	n := &node{kind: kindScalar, pos: j.next()}
	from := j.dec.InputOffset()
	t, err := j.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			return n, j.object(n, depth)
		}
		n.kind = kindSequence
		for j.dec.More() {
			c, err := j.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, c)
		}
		_, err = j.dec.Token()
	case string:
		n.text, err = j.text(from, t)
	case json.Number:
		n.text, n.typ = t.String(), typeInt
		if strings.ContainsAny(n.text, ".eE") {
			n.typ = typeFloat
		}
	case bool:
		n.text, n.typ = "false", typeBool
		if t {
			n.text = "true"
		}
	default:
		n.typ = typeNull
	}
	return n, err
}

func (j *jsonReader) object(n *node, depth int) error {
	n.kind = kindMapping
	for j.dec.More() {
		p := pair{pos: j.next()}
		from := j.dec.InputOffset()
		t, err := j.dec.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return errors.New("a key must be a string")
		}
		if p.key, err = j.text(from, key); err != nil {
			return err
		}
		if p.value, err = j.value(depth + 1); err != nil {
			return err
		}
		n.pairs = append(n.pairs, p)
	}
	_, err := j.dec.Token()
	return err
}
