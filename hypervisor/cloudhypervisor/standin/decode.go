// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// object is a struct of the configuration: its known fields, with defaults.
type object map[string]any

// at is a struct in o, empty if it is not there.
func (o object) at(name string) object { inner, _ := o[name].(object); return inner }

func (o object) list(name string) []any { inner, _ := o[name].([]any); return inner }

// text is a string in o, empty if it is not there.
func (o object) text(name string) string { s, _ := o[name].(string); return s }

// kind reads one value whose first token was read.
type kind func(*decoder, json.Token) (any, error)

type field struct {
	kind     kind
	required bool
	fallback any  // nil: an optional field that stays away
	null     bool // null is no value
}

type schema struct {
	name   string
	fields map[string]field
}

// decoder is serde_json's view of a body: unknown keys are ignored, types are
// not, and what is wrong is repeated in the error.
type decoder struct {
	*json.Decoder
	body []byte
}

// decode reads a body that must be one value of this schema.
func decode(body []byte, s *schema) (any, error) {
	d := &decoder{Decoder: json.NewDecoder(bytes.NewReader(body)), body: body}
	if !utf8.Valid(body) {
		return nil, d.fault("invalid unicode code point")
	}
	d.UseNumber()
	v, err := d.read(structOf(s))
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, d.fault("trailing characters")
	}
	return v, nil
}

func (d *decoder) fault(format string, a ...any) error {
	read := d.body[:d.InputOffset()]
	line := bytes.Count(read, []byte("\n")) + 1
	column := len(read) - (bytes.LastIndexByte(read, '\n') + 1)
	return fmt.Errorf("%s at line %d column %d", fmt.Sprintf(format, a...), line, column)
}

func (d *decoder) read(k kind) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, d.fault("%s", syntax(err))
	}
	return k(d, t)
}

func syntax(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "EOF while parsing a value"
	}
	return "expected value"
}

// wrong names what was found as serde does, value and all.
func (d *decoder) wrong(t json.Token, want string) error {
	found := "null"
	switch t := t.(type) {
	case string:
		found = "string " + strconv.Quote(t)
	case bool:
		found = fmt.Sprintf("boolean `%v`", t)
	case json.Number:
		found = fmt.Sprintf("integer `%s`", t)
		if strings.ContainsAny(t.String(), ".eE") {
			found = fmt.Sprintf("floating point `%s`", t)
		}
	case json.Delim:
		found = map[json.Delim]string{'{': "map", '[': "sequence"}[t]
	}
	return d.fault("invalid type: %s, expected %s", found, want)
}

func stringKind(want string) kind {
	return func(d *decoder, t json.Token) (any, error) {
		if s, ok := t.(string); ok {
			return s, nil
		}
		return nil, d.wrong(t, want)
	}
}

func boolKind(d *decoder, t json.Token) (any, error) {
	if b, ok := t.(bool); ok {
		return b, nil
	}
	return nil, d.wrong(t, "a boolean")
}

// unsigned is a number of that many bits.
func unsigned(bits int, name string) kind {
	return func(d *decoder, t json.Token) (any, error) {
		n, ok := t.(json.Number)
		if !ok || strings.ContainsAny(n.String(), ".eE") {
			return nil, d.wrong(t, name)
		}
		u, err := strconv.ParseUint(n.String(), 10, bits)
		if err != nil {
			return nil, d.fault("invalid value: integer `%s`, expected %s", n, name)
		}
		return u, nil
	}
}

func oneOf(names ...string) kind {
	return func(d *decoder, t json.Token) (any, error) {
		s, ok := t.(string)
		if !ok {
			return nil, d.wrong(t, "a variant")
		}
		if !slices.Contains(names, s) {
			return nil, d.fault("unknown variant `%s`, expected one of `%s`", s, strings.Join(names, "`, `"))
		}
		return s, nil
	}
}

func listOf(k kind) kind {
	return func(d *decoder, t json.Token) (any, error) {
		if t != json.Delim('[') {
			return nil, d.wrong(t, "a sequence")
		}
		out := []any{}
		for d.More() {
			v, err := d.read(k)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err := d.read(anything)
		return out, err
	}
}

// anything skips a value: of a key that is not known.
func anything(d *decoder, t json.Token) (any, error) {
	if t != json.Delim('{') && t != json.Delim('[') {
		return t, nil
	}
	for d.More() {
		if _, err := d.read(anything); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, d.fault("%s", syntax(err))
	}
	return nil, nil
}

func structOf(s *schema) kind {
	return func(d *decoder, t json.Token) (any, error) {
		switch t {
		case json.Delim('{'):
		case json.Delim('['):
			_, err := anything(d, t)
			return nil, errors.Join(err, d.fault("invalid length, expected struct %s", s.name))
		default:
			return nil, d.wrong(t, "struct "+s.name)
		}
		out := object{}
		for d.More() {
			if err := d.member(s, out); err != nil {
				return nil, err
			}
		}
		if _, err := d.Token(); err != nil {
			return nil, d.fault("%s", syntax(err))
		}
		return out, d.complete(s, out)
	}
}

func (d *decoder) member(s *schema, out object) error {
	key, err := d.Token()
	if err != nil {
		return d.fault("%s", syntax(err))
	}
	name, _ := key.(string)
	f, known := s.fields[name]
	if !known {
		_, err := d.read(anything)
		return err
	}
	if _, twice := out[name]; twice {
		return d.fault("duplicate field `%s`", name)
	}
	t, err := d.Token()
	if err != nil {
		return d.fault("%s", syntax(err))
	}
	if t == nil && f.null {
		return nil
	}
	v, err := f.kind(d, t)
	out[name] = v
	return err
}

func (d *decoder) complete(s *schema, out object) error {
	for _, name := range slices.Sorted(maps.Keys(s.fields)) {
		f := s.fields[name]
		if _, there := out[name]; there {
			continue
		}
		if f.required {
			return d.fault("missing field `%s`", name)
		}
		if f.fallback != nil {
			out[name] = f.fallback
		}
	}
	return nil
}
