// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vmcred/vmcred/vm"
)

// Host is what the host's own file says.
type Host struct {
	File  string // its path; empty: there is none
	Audit string // the audit log, an absolute path; empty: not said
	Vars  string // the folder of `var:` sources, an absolute path; empty: not said
	// Sources are the folders that a `file:` source may be in, absolute paths; nil:
	// not said, which is DefaultSources.
	Sources []string
}

// hostName is the name of the host's file, without its ending.
const hostName = "vmcred"

// laterHostKeys decode one day, and are refused by name until then.
func laterHostKeys() []string { return []string{"key", "machine", "signers"} }

// LoadHost reads the host's file: /etc/vmcred/vmcred.yaml for root, an ordinary
// user's $XDG_CONFIG_HOME/vmcred/vmcred.yaml; or .json. If there is none, nothing
// is said.
func LoadHost(uid int, getenv func(string) string) (*Host, vm.Problems) {
	vms, err := Dir(uid, getenv)
	if err != nil {
		return &Host{}, nil // without a home there is no such file
	}
	return LoadHostIn(filepath.Dir(vms))
}

// LoadHostIn reads the host's file in dir, the directory above the VMs'.
func LoadHostIn(dir string) (*Host, vm.Problems) {
	var found []string
	for _, ext := range []string{".yaml", ".json"} {
		path := filepath.Join(dir, hostName+ext)
		switch _, err := os.Lstat(path); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR):
			return nil, fatal(path, "cannot look for the host's file: "+err.Error(), "")
		}
	}
	switch len(found) {
	case 0:
		return &Host{}, nil
	case 2:
		return nil, fatal(found[0], "the host has a second file, "+found[1], "take one of them away")
	}
	data, err := readTrusted(found[0], MaxSize)
	if err != nil {
		return nil, ofHost(asProblems(found[0], err))
	}
	return ParseHost(found[0], data)
}

// ParseHost reads the content of a host's file that would stand at path, which is
// absolute. It opens nothing. The Host is nil exactly when there are problems.
func ParseHost(path string, data []byte) (*Host, vm.Problems) {
	if len(data) > MaxSize {
		return nil, ofHost(asProblems(path, tooLarge()))
	}
	read := parseYAML
	if filepath.Ext(path) == ".json" {
		read = parseJSON
	}
	root, problems := read(path, data)
	if len(problems) > 0 {
		return nil, ofHost(problems)
	}
	d := newDecoder(path, filepath.Dir(path))
	d.at[""] = root.pos
	h := &Host{File: path}
	d.hostTop(root, h)
	if len(d.problems) > 0 {
		return nil, ofHost(sorted(d.problems))
	}
	return h, nil
}

func (d *decoder) hostTop(n *node, h *Host) {
	version := int64(0)
	f := fields{
		"version": d.integer(1, 1, func(v int64) { version = v }),
		"audit":   d.path(&h.Audit),
		"vars":    d.folder(&h.Vars),
		"sources": func(path string, n *node) {
			h.Sources = []string{} // an empty list allows none
			d.list(path, n, func(sub string, c *node) {
				var dir string
				d.folder(&dir)(sub, c)
				h.Sources = append(h.Sources, dir)
			})
		},
	}
	for _, k := range laterHostKeys() {
		f[k] = func(path string, _ *node) {
			d.fail(path, "take it out: a later version reads it", "this key is not read yet")
		}
	}
	d.object("", n, f)
	if version == 0 && n.kind == kindMapping {
		d.fail("version", `begin the file with "version: 1"`, "this key is missing")
	}
}

// ofHost gives problems that are about a file as a whole the words for this one.
func ofHost(ps vm.Problems) vm.Problems {
	for i, p := range ps {
		switch {
		case p.Message == "the file is empty":
			ps[i].Hint = `begin it with "version: 1", or remove it`
		case p.Message == "the file holds more than one document":
			ps[i].Hint = `take the second "---" away`
		case p.Message == tooLarge().Error():
			ps[i].Hint = "the host's file is a few lines; is this the right one?"
		case p.Hint == fmt.Sprintf(mayRead, os.Geteuid()):
			ps[i].Hint = fmt.Sprintf("user %d must be able to read it; the host's file holds no secret", os.Geteuid())
		}
	}
	return ps
}
