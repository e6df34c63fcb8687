// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/vmcred/vmcred/vm"
)

// parseYAML reads one YAML document. Anchors, aliases, merge keys and tags are
// refused: they hide what a file says, and can make a small file a huge one.
func parseYAML(file string, data []byte) (*node, vm.Problems) {
	var doc yaml.Node
	if err := yaml.Load(data, &doc, yaml.WithUniqueKeys(false)); err != nil {
		return nil, vm.Problems{yamlProblem(file, err)}
	}
	root := &doc
	if doc.Kind == yaml.DocumentNode {
		if len(doc.Content) != 1 {
			return nil, vm.Problems{emptyFile(file)}
		}
		root = doc.Content[0]
	}
	y := yamlReader{file: file}
	n := y.node(root, 0)
	if len(y.problems) > 0 {
		return nil, y.problems
	}
	return n, nil
}

func emptyFile(file string) vm.Problem {
	return vm.Problem{
		Pos: vm.Pos{File: file}, Message: "the file is empty",
		Hint: `a VM needs at least "version: 1", "hypervisor:" and "boot: {kernel: …}"`,
	}
}

// yamlProblem turns the parser's error into ours. Its text is about syntax
// and holds no value of the file.
func yamlProblem(file string, err error) vm.Problem {
	p := vm.Problem{Pos: vm.Pos{File: file}, Message: "this is not YAML: " + err.Error()}
	var one *yaml.LoadError
	var many *yaml.LoadErrors
	if errors.As(err, &many) && len(many.Errors) > 0 {
		one = many.Errors[0]
	} else if !errors.As(err, &one) {
		if strings.Contains(err.Error(), "no documents") {
			return emptyFile(file)
		}
		return p
	}
	switch {
	case strings.Contains(one.Message, "no documents"):
		return emptyFile(file)
	case strings.Contains(one.Message, "expected single document"):
		p.Message, p.Hint = "the file holds more than one document", `one file is one VM: take the second "---" away`
		return p
	}
	p.Message = "this is not YAML: " + one.Message
	if one.ContextMsg != "" {
		p.Message += " (" + one.ContextMsg + ")"
	}
	p.Pos.Line, p.Pos.Column = one.Mark.Line, one.Mark.Column
	if strings.Contains(one.Message, "tab") || strings.Contains(one.Message, "cannot start any token") {
		p.Hint = "indent with spaces, not tabs, and put values with special characters in quotes"
	}
	return p
}

type yamlReader struct {
	file     string
	problems vm.Problems
}

func (y *yamlReader) refuse(n *yaml.Node, message, hint string) *node {
	y.problems = append(y.problems, vm.Problem{Pos: y.pos(n), Message: message, Hint: hint})
	return &node{kind: kindScalar, typ: typeNull, pos: y.pos(n)}
}

func (y *yamlReader) pos(n *yaml.Node) vm.Pos {
	return vm.Pos{File: y.file, Line: n.Line, Column: n.Column}
}

func (y *yamlReader) node(n *yaml.Node, depth int) *node {
	switch {
	case depth > maxDepth:
		return y.refuse(n, "this is nested too deeply", "")
	case n.Anchor != "":
		return y.refuse(n, "anchors (&name) are not read", "write the value out at each place")
	case n.Kind == yaml.AliasNode:
		return y.refuse(n, "aliases (*name) are not read", "write the value out; a text that begins with * needs quotes")
	case n.Style&yaml.TaggedStyle != 0:
		return y.refuse(n, "tags (!name) are not read", "a text that begins with ! needs quotes")
	}
	out := &node{pos: y.pos(n)}
	switch n.Kind {
	case yaml.MappingNode:
		out.kind = kindMapping
		for i := 0; i+1 < len(n.Content); i += 2 {
			out.pairs = append(out.pairs, y.pair(n.Content[i], n.Content[i+1], depth))
		}
	case yaml.SequenceNode:
		out.kind = kindSequence
		for _, c := range n.Content {
			out.items = append(out.items, y.node(c, depth+1))
		}
	default:
		out.kind, out.text, out.typ = kindScalar, n.Value, yamlType(n)
	}
	return out
}

func (y *yamlReader) pair(k, v *yaml.Node, depth int) pair {
	p := pair{pos: y.pos(k)}
	switch {
	case k.Kind == yaml.AliasNode, k.Anchor != "", k.Style&yaml.TaggedStyle != 0:
		y.refuse(k, "anchors, aliases and tags are not read", "write the key out")
	case k.Kind != yaml.ScalarNode:
		y.refuse(k, "a key must be a word", `did you mean to put quotes around it?`)
	case k.Value == "<<" && k.ShortTag() == "!!merge":
		y.refuse(k, "merge keys (<<) are not read", "write the keys out")
		return p
	default:
		p.key = k.Value
	}
	p.value = y.node(v, depth+1)
	return p
}

func yamlType(n *yaml.Node) scalarType {
	switch n.ShortTag() {
	case "!!int":
		return typeInt
	case "!!float":
		return typeFloat
	case "!!bool":
		return typeBool
	case "!!null":
		return typeNull
	default:
		return typeString
	}
}
