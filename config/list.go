// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Listed is a file in the directory where VMs are looked up.
type Listed struct {
	Name string // the VM's; of a file that cannot be one's, the file's own, as it is
	Path string // empty if there are two
	Err  error  // why the name cannot be used: a *FindError
}

// List lists the VMs in dir by name, and the files that look like one and cannot
// be found by a name. It opens none of them.
func List(dir string) ([]Listed, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []Listed
	for _, e := range entries {
		base := e.Name()
		if strings.HasPrefix(base, ".") || !slices.Contains([]string{".yaml", ".json", ".yml"}, filepath.Ext(base)) {
			continue
		}
		l := Listed{Name: base, Path: filepath.Join(dir, base)}
		if name, err := FileName(base); err != nil {
			l.Err = err
		} else {
			l.Name = name
			l.Path, l.Err = FindIn(dir, name)
		}
		if !slices.ContainsFunc(out, func(o Listed) bool { return o.Name == l.Name }) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Listed) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}
