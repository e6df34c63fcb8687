// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vmcred/vmcred/vm"
)

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		sources []string
		path    string
		want    bool
	}{
		{nil, "/run/secrets/x", true},
		{nil, "/run/secrets/vms/test-vm/x", true},
		{nil, "/etc/vmcred/secrets/x", true},
		{nil, "/run/secretsx", false},
		{nil, "/run/secrets-other/x", false},
		{nil, "/run/secrets", false}, // a folder
		{nil, "/run/secrets/", false},
		{nil, "/run/secrets/../shadow", false},
		{nil, "/run/secrets//x", false},
		{nil, "run/secrets/x", false},
		{nil, "", false},
		{nil, "/etc/shadow", false},
		{[]string{"/srv"}, "/srv/x", true},
		{[]string{"/srv"}, "/run/secrets/x", false}, // it replaces the default
		{[]string{}, "/run/secrets/x", false},
		{[]string{"/"}, "/etc/shadow", true},
		{[]string{"/"}, "/", false},
	} {
		h := &Host{Sources: c.sources}
		if got := h.Allows(c.path); got != c.want {
			t.Errorf("%q: %q: %v", c.sources, c.path, got)
		}
	}
}

// TestAllowsIsAPrefixOfSteps compares Allows with a walk up the path.
func TestAllowsIsAPrefixOfSteps(t *testing.T) {
	path := rapid.StringMatching(`(/(a|b|ab|\.\.|\.)){0,4}/?`)
	rapid.Check(t, func(t *rapid.T) {
		h := &Host{Sources: []string{}}
		for _, dir := range rapid.SliceOfN(path, 0, 3).Draw(t, "sources") {
			h.Sources = append(h.Sources, filepath.Clean("/"+dir))
		}
		p := path.Draw(t, "path")
		want := false
		for at := p; filepath.IsAbs(p) && filepath.Clean(p) == p && at != "/"; {
			at = filepath.Dir(at)
			want = want || slices.Contains(h.Sources, at)
		}
		if got := h.Allows(p); got != want {
			t.Fatalf("%q: %q: %v, want %v", h.Sources, p, got, want)
		}
	})
}

func TestCheckSources(t *testing.T) {
	const text = "version: 1\nhypervisor: qemu\nboot: {kernel: /k}\ncredentials:\n  a: {file: /run/secrets/a}\n  b: {file: /srv/b}\n" +
		"  c: {encrypted: /srv/c}\n  d: {var: g/f}\n  e: {}\n"
	spec, problems := Parse("/etc/vmcred/vms/x.yaml", []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, c := range []struct {
		host *Host
		want []string
	}{
		{&Host{}, []string{"/etc/vmcred/vms/x.yaml:6:3: credentials.b.file: /srv/b is in none", "/etc/credstore, ", "; sources: in /etc/vmcred/vmcred.yaml names others instead"}},
		{&Host{File: "/h.json", Sources: []string{"/run/secrets"}}, []string{":6:3: ", "they are /run/secrets; add /srv to sources: in /h.json"}},
		{&Host{File: "/h.json", Sources: []string{"/run/secrets", "/srv"}}, nil},
	} {
		got := c.host.CheckSources(spec)
		if len(got) != min(1, len(c.want)) {
			t.Errorf("%+v: %v", c.host, got)
			continue
		}
		for _, w := range c.want {
			if said := got[0].Error() + "\n" + got[0].Hint; !strings.Contains(said, w) || got[0].Severity != vm.Error {
				t.Errorf("%+v: no %q in %s", c.host, w, said)
			}
		}
	}
	if none := (&Host{File: "/h", Sources: []string{}}).CheckSources(spec); len(none) != 2 || none[1].Hint != "sources: in /h allows none" {
		t.Error(none)
	}
}

func TestIsHosts(t *testing.T) {
	for file, want := range map[string]bool{
		"/etc/vmcred/vms/x.yaml": true, "/etc/vmcred/../vmcred/vms/x.yaml": true,
		"/etc/vmcred/vms/d/x.yaml": false, "x.yaml": false, "/root/x.yaml": false,
	} {
		if got := IsHosts(file); got != want {
			t.Errorf("%s: %v", file, got)
		}
	}
}
