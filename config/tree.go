// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"

	"github.com/vmcred/vmcred/vm"
)

// kind is the shape of a node.
type kind int

const (
	kindMapping kind = iota + 1
	kindSequence
	kindScalar
)

// scalarType is what a scalar was written as.
type scalarType int

const (
	typeString scalarType = iota
	typeInt
	typeFloat
	typeBool
	typeNull
)

// node is one value of a file with its place; YAML and JSON both become this,
// so that one decoder reads both.
type node struct {
	kind  kind
	typ   scalarType
	text  string // a scalar as written, without quotes
	pairs []pair
	items []*node
	pos   vm.Pos
}

// pair is one key of a mapping with its value.
type pair struct {
	key   string
	pos   vm.Pos // of the key
	value *node
}

// maxDepth is more than any file needs: the deepest place is
// credentials.NAME.sops.key.
const maxDepth = 12

// what names a node's shape for messages. It never shows the value.
func (n *node) what() string {
	switch n.kind {
	case kindMapping:
		return "a mapping"
	case kindSequence:
		return "a list"
	}
	switch n.typ {
	case typeInt, typeFloat:
		return "a number"
	case typeBool:
		return "true or false"
	case typeNull:
		return "nothing"
	default:
		return "a string"
	}
}

// join appends a key to a field path; keys that are not plain are quoted.
func join(path, key string) string {
	if !isPlain(key) {
		key = fmt.Sprintf("%q", key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func isPlain(key string) bool {
	for i := range len(key) {
		c := key[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return key != ""
}
