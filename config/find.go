// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmcred/vmcred/vm"
)

// SystemDir is where root's VMs stand.
const SystemDir = "/etc/vmcred/vms"

// FindError says why there is no file for a VM, with what to do about it.
type FindError struct {
	Message string
	Tip     string
	cause   error
}

// Error returns the message without the hint.
func (e *FindError) Error() string { return e.Message }

// Hint returns what to do about it, or "".
func (e *FindError) Hint() string { return e.Tip }

// Unwrap returns the system's error, if there is one: fs.ErrNotExist when the
// file is not there.
func (e *FindError) Unwrap() error { return e.cause }

// Dir is the directory where a user's VMs are looked up: SystemDir for root,
// $XDG_CONFIG_HOME/vmcred/vms for anyone else, where $XDG_CONFIG_HOME is
// $HOME/.config when it is empty or not absolute (XDG Base Directory).
func Dir(uid int, getenv func(string) string) (string, error) {
	if uid == 0 {
		return SystemDir, nil
	}
	base := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(base) {
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", &FindError{
				Message: "cannot tell where your VMs are: neither XDG_CONFIG_HOME nor HOME is an absolute path",
				Tip:     "set HOME, or give the path of the VM's file",
			}
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "vmcred", "vms"), nil
}

// Find returns the path of a VM's file. An argument with a "/" is a path
// already; a name is looked up in Dir and nowhere else.
func Find(arg string, uid int, getenv func(string) string) (string, error) {
	if strings.Contains(arg, "/") {
		return arg, nil
	}
	dir, err := Dir(uid, getenv)
	if err != nil {
		return "", err
	}
	return FindIn(dir, arg)
}

// FindIn returns dir/NAME.yaml or dir/NAME.json, whichever is there; both are
// refused, as is a name that is none.
func FindIn(dir, name string) (string, error) {
	if err := CheckName(name); err != nil {
		tip := ""
		if ext := filepath.Ext(name); ext == ".yaml" || ext == ".json" {
			tip = fmt.Sprintf("for the VM write %s, for the file ./%s", strings.TrimSuffix(name, ext), name)
		} else if names, _ := Names(dir); len(names) > 0 {
			tip = thereAre(name, names)
		}
		return "", &FindError{Message: err.Error(), Tip: tip}
	}
	var found []string
	for _, ext := range []string{".yaml", ".json"} {
		path := filepath.Join(dir, name+ext)
		switch _, err := os.Lstat(path); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist):
			return "", &FindError{Message: "cannot look for the VM " + name + ": " + err.Error(), cause: err}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 2:
		return "", &FindError{Message: fmt.Sprintf("the VM %s has two files: %s and %s", name, found[0], found[1]), Tip: "take one of them away"}
	}
	return "", notFound(dir, name)
}

func notFound(dir, name string) error {
	e := &FindError{Message: fmt.Sprintf("there is no VM %s in %s", name, dir), cause: fs.ErrNotExist}
	if _, err := os.Lstat(filepath.Join(dir, name+".yml")); err == nil {
		e.Tip = fmt.Sprintf("rename %s.yml to %s.yaml", name, name)
		return e
	}
	names, err := Names(dir)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		e.Message += ", and the directory cannot be read: " + err.Error()
	case len(names) == 0:
		e.Tip = fmt.Sprintf("there are no VMs yet: write %s (vmcred init %s)", filepath.Join(dir, name+".yaml"), name)
	default:
		e.Tip = thereAre(name, names)
	}
	return e
}

// thereAre lists the VMs, the one that was probably meant first.
func thereAre(name string, names []string) string {
	list := "there are: " + strings.Join(names, ", ")
	if near := vm.Nearest(name, names); near != "" {
		return fmt.Sprintf("did you mean %s? (%s)", near, list)
	}
	return list
}

// Names lists the VMs that have a file in dir, sorted.
func Names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, err := FileName(e.Name()); err == nil && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
