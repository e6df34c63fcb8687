// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostFile(t *testing.T) {
	for text, want := range map[string]string{
		"version: 1\n": "", "version: 1\naudit: /x/audit.log\n": "/x/audit.log", "version: 1\naudit: logs/a\n": "/etc/vmcred/logs/a",
	} {
		h, problems := ParseHost("/etc/vmcred/vmcred.yaml", []byte(text))
		if len(problems) > 0 || h.Audit != want {
			t.Errorf("%q: %+v, %v", text, h, problems)
		}
	}
	h, problems := ParseHost("/etc/vmcred/vmcred.json", []byte(`{"version": 1, "audit": "/x"}`))
	if len(problems) > 0 || h.Audit != "/x" {
		t.Errorf("%+v, %v", h, problems)
	}
}

func TestHostFolders(t *testing.T) {
	for text, want := range map[string]Host{
		"": {}, "vars: /x\n": {Vars: "/x"}, "vars: /x//y/\n": {Vars: "/x/y"}, "vars: v/\n": {Vars: "/etc/vmcred/v"}, "vars: //\n": {Vars: "/"},
		"sources: []\n": {Sources: []string{}}, "sources: [/a/, b/../c, /]\n": {Sources: []string{"/a", "/etc/vmcred/c", "/"}},
	} {
		h, problems := ParseHost("/etc/vmcred/vmcred.yaml", []byte("version: 1\n"+text))
		want.File = "/etc/vmcred/vmcred.yaml"
		if diff := cmp.Diff(&want, h); diff != "" || len(problems) > 0 {
			t.Errorf("%q: %v\n%s", text, problems, diff)
		}
	}
}

func TestHostFileIsRefused(t *testing.T) {
	for text, want := range map[string][]string{
		"": {"the file is empty"}, "audit: /x\n": {"version: this key is missing"}, "version: 2\n": {"2 is out of range"},
		"version: 1\naudti: /x\n": {"audti: there is no such key"}, "version: 1\naudit: 3\n": {"this must be a string"},
		"version: 1\naudit: \"\"\n": {"this path is empty"}, "version: 1\naudit: /var/log/\n": {"this path ends in /"},
		"version: 1\nvars: \"\"\n": {"this path is empty"}, "version: 1\nvars: ~/x\n": {"~ is not a directory"}, "version: 1\nvars: [x]\n": {"this must be a string"},
		"version: 1\nsources: /x\n": {"this must be a list"}, "version: 1\nsources: [3, \"\"]\n": {"sources[0]: this must be a string", "sources[1]: this path is empty"},
		"version: 1\naudit:\n": {"this key has no value"}, "version: 1\n---\nversion: 1\n": {"more than one document"},
		"version: 1\nkey: x\nmachine: x\nsigners: [x]\nhypervisor: qemu\n": {
			"key: this key is not read yet", "machine: this key is not read yet", "signers: this key is not read yet", "hypervisor: there is no such key",
		},
	} {
		h, problems := ParseHost("/etc/vmcred/vmcred.yaml", []byte(text))
		if h != nil || len(problems) != len(want) {
			t.Errorf("%q: %+v, %v", text, h, problems)
			continue
		}
		for i, w := range want {
			if !strings.Contains(problems[i].Error(), w) || strings.Contains(problems[i].Hint, "VM") {
				t.Errorf("%q: %v (%s), want %q", text, problems[i], problems[i].Hint, w)
			}
		}
	}
}

func TestHostFileIsFound(t *testing.T) {
	home := t.TempDir()
	getenv := func(k string) string { return map[string]string{"XDG_CONFIG_HOME": home}[k] }
	load := func() string {
		h, problems := LoadHost(1000, getenv)
		if h == nil {
			return problems.Error()
		}
		return h.File + " " + h.Audit
	}
	if got := load(); got != " " {
		t.Errorf("without one: %q", got)
	}
	dir := filepath.Join(home, "vmcred")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vmcred.yaml")
	if err := os.WriteFile(path, []byte("version: 1\naudit: a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, want := load(), path+" "+dir+"/a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := load(); !strings.Contains(got, "can be written by others") {
		t.Error(got)
	}
	if err := os.WriteFile(filepath.Join(dir, "vmcred.json"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := load(); !strings.Contains(got, "the host has a second file") {
		t.Error(got)
	}
	if h, problems := LoadHost(1000, func(string) string { return path }); h == nil || h.File != "" {
		t.Errorf("below a file: %v, %v", h, problems)
	}
	if h, problems := LoadHost(1000, func(string) string { return "" }); h == nil || h.File != "" {
		t.Error(h, problems)
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add([]byte("version: 1\naudit: /x\n"), true)
	f.Add([]byte("version: 1\nvars: v\nsources: [/a/, b]\n"), true)
	f.Add([]byte(`{"version": 1, "audit": "/x"}`), false)
	f.Fuzz(func(t *testing.T, b []byte, yaml bool) {
		path := "/etc/vmcred/vmcred.json"
		if yaml {
			path = "/etc/vmcred/vmcred.yaml"
		}
		h, problems := ParseHost(path, b)
		if (h == nil) != (len(problems) > 0) {
			t.Fatalf("%+v, %v", h, problems)
		}
		if h == nil {
			return
		}
		for _, p := range append(h.AllowedSources(), h.Audit, h.Vars) {
			if p != "" && (!filepath.IsAbs(p) || filepath.Clean(p) != p) {
				t.Errorf("%q: %+v", p, h)
			}
		}
	})
}
