// SPDX-License-Identifier: Apache-2.0

// Package config reads a VM's file: it loads, fills in defaults and validates,
// and reports every problem at once with its place. It does not know how
// anything is done, nor which hypervisors have a driver.
//
// YAML (for hands) and JSON (for machines) become one tree and are read by one
// strict decoder. Unknown keys, keys that stand twice, anchors, aliases, merge
// keys and tags are refused.
package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Load reads the file at path. The VM's name is the file's name without .yaml
// or .json. Problems may hold warnings beside a usable Spec; the Spec is nil
// exactly when Problems.Fatal() is not empty.
func Load(path string) (*vm.Spec, vm.Problems) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fatal(path, fmt.Sprintf("cannot tell where it is: %v", err), "")
	}
	if _, err := FileName(abs); err != nil {
		return nil, asProblems(path, err)
	}
	data, err := readTrusted(abs, MaxSize)
	if err != nil {
		return nil, asProblems(path, err)
	}
	spec, problems := parse(path, abs, data)
	return spec, problems
}

// Parse reads the content of a VM's file that would stand at path. It opens
// nothing.
func Parse(path string, data []byte) (*vm.Spec, vm.Problems) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fatal(path, fmt.Sprintf("cannot tell where it is: %v", err), "")
	}
	return parse(path, abs, data)
}

// FileName returns the name of the VM whose file is at path.
func FileName(path string) (string, error) {
	base := filepath.Base(path)
	ext := filepath.Ext(base)
	name := strings.TrimSuffix(base, ext)
	switch ext {
	case ".yaml", ".json":
	case ".yml":
		return "", &FindError{Message: "a VM's file ends in .yaml or .json, not .yml", Tip: "rename it to " + name + ".yaml"}
	default:
		return "", &FindError{Message: "a VM's file ends in .yaml or .json", Tip: "the rest of its name is the VM's name: test-vm.yaml"}
	}
	if err := CheckName(name); err != nil {
		return "", &FindError{Message: err.Error(), Tip: "rename the file"}
	}
	return name, nil
}

func parse(shown, abs string, data []byte) (*vm.Spec, vm.Problems) {
	name, err := FileName(abs)
	if err != nil {
		return nil, asProblems(shown, err)
	}
	if len(data) > MaxSize {
		return nil, asProblems(shown, tooLarge())
	}
	read := parseYAML
	if filepath.Ext(abs) == ".json" {
		read = parseJSON
	}
	root, problems := read(shown, data)
	if len(problems) > 0 {
		return nil, problems
	}
	d := newDecoder(shown, filepath.Dir(abs))
	d.at[""] = root.pos
	d.top(root)
	if root.kind == kindMapping {
		d.defaults(name)
		d.validate()
	}
	if ps := sorted(d.problems); len(ps.Fatal()) > 0 {
		return nil, ps
	}
	return d.spec, d.problems
}

func tooLarge() error {
	return &FindError{Message: fmt.Sprintf("the file is larger than %d bytes", MaxSize), Tip: "a VM's file is a few lines; is this the right one?"}
}

func fatal(path, message, hint string) vm.Problems {
	return vm.Problems{{Pos: vm.Pos{File: path}, Message: message, Hint: hint}}
}

// asProblems gives an error about the file as a whole its place.
func asProblems(path string, err error) vm.Problems {
	var f *FindError
	if errors.As(err, &f) {
		return fatal(path, f.Message, f.Tip)
	}
	return fatal(path, err.Error(), "")
}
