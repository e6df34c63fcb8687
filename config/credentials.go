// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"

	"github.com/vmcred/vmcred/vm"
)

// Nothing here may repeat a value in a message: what stands in the wrong place
// under credentials: can be a secret.

func (d *decoder) credentials(path string, n *node) {
	d.pairs(path, n, func(sub string, p pair) {
		c := vm.Credential{Host: p.key, Source: vm.Source{Kind: vm.SourceUnit}, Pos: p.pos}
		d.credential(sub, p.value, &c)
		d.spec.Credentials = append(d.spec.Credentials, c)
	})
}

// sourceKeys are the keys of which a credential may have one.
func sourceKeys() []string { return []string{"encrypted", "file", "sops", "var"} }

func (d *decoder) credential(path string, n *node, c *vm.Credential) {
	if n.kind == kindScalar {
		hint := "write {file: PATH}, or {} if the unit's own LoadCredential= brings it; a secret's value never stands in this file"
		d.fail(path, hint, "this must be a mapping that says where the value comes from, not %s", n.what())
		return
	}
	if n.kind == kindMapping && len(n.pairs) == 0 {
		return // {}: the unit's own
	}
	for _, p := range n.pairs {
		if slices.Contains([]string{"value", "text", "content", "data", "secret", "literal", "plain"}, p.key) {
			d.at[join(path, p.key)] = p.pos
			d.fail(join(path, p.key), "write {file: PATH}; what is not secret stands under static:", "a secret's value never stands in this file")
		}
	}
	source := func(k vm.SourceKind, read func(*string) func(string, *node)) func(string, *node) {
		return func(path string, n *node) {
			c.Source = vm.Source{Kind: k}
			read(&c.Source.Path)(path, n)
		}
	}
	d.object(path, n, fields{
		"var":         source(vm.SourceVar, d.str),
		"file":        source(vm.SourceFile, d.path),
		"encrypted":   source(vm.SourceEncrypted, d.path),
		"sops":        func(path string, n *node) { d.sops(path, n, c) },
		"as":          d.str(&c.Guest),
		"allow-empty": d.boolean(&c.AllowEmpty),
	})
	var given []string
	for _, p := range n.pairs {
		if slices.Contains(sourceKeys(), p.key) {
			given = append(given, p.key)
		}
	}
	if slices.Sort(given); len(given) > 1 {
		d.fail(path, "keep one of them", "more than one source: %s and %s", given[0], given[1])
	}
}

func (d *decoder) sops(path string, n *node, c *vm.Credential) {
	c.Source = vm.Source{Kind: vm.SourceSOPS}
	d.object(path, n, fields{"file": d.path(&c.Source.Path), "key": d.str(&c.Source.Key)})
	for _, k := range []string{"file", "key"} {
		if !d.has(join(path, k)) {
			d.fail(join(path, k), "write sops: {file: PATH, key: NAME}", "this key is missing")
		}
	}
}

// static takes every scalar as it is written: `PORT: 8080` is "8080".
func (d *decoder) static(path string, n *node) {
	d.pairs(path, n, func(sub string, p pair) {
		v := p.value
		if v.kind != kindScalar || v.typ == typeNull {
			d.fail(sub, `write "" for an empty value`, "this must be one value, not %s", v.what())
			return
		}
		d.spec.Static = append(d.spec.Static, vm.Static{Name: p.key, Value: v.text, Pos: p.pos})
	})
}

func (d *decoder) oemStrings(path string, n *node) {
	d.list(path, n, func(sub string, c *node) {
		var s string
		d.str(&s)(sub, c)
		d.spec.OEMStrings = append(d.spec.OEMStrings, s)
	})
}
